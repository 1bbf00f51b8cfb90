use super::*;
use branchline_node::config::Reach;
use branchline_protocol::id::Role;
use std::{collections::BTreeMap, path::PathBuf};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../topology-examples")
}

/// Every shipped example folder, by name.
fn shipped() -> BTreeMap<String, PathBuf> {
    let entries = std::fs::read_dir(examples()).unwrap().map(|e| e.unwrap().path());
    let named = |p: PathBuf| (p.file_name().unwrap().to_string_lossy().into_owned(), p);
    entries.filter(|p| p.is_dir() && !p.ends_with("invalid")).map(named).collect()
}

fn plan(text: &str) -> Result<Plan, Mistakes> {
    read(&branchline_node::config::parse(text).unwrap())
}

#[test]
fn top_23_every_example_loads_and_is_what_its_readme_shows() {
    let shipped = shipped();
    let names: Vec<&str> = shipped.keys().map(String::as_str).collect();
    assert_eq!(names, ["msp", "multi-site", "satellite-office", "two-agents"]);
    for (name, folder) in &shipped {
        let plan = load(folder).unwrap_or_else(|m| panic!("{name}: {m}"));
        assert_eq!(&plan.name, name, "the state folder is found by the example's name");
        let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
        for node in plan.nodes.iter().filter(|n| n.role != Role::Agent) {
            assert!(readme.contains(&node.name), "{name}: the picture lacks {}", node.name);
        }
        let expected: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
        for role in [Role::Server, Role::Gateway, Role::Relay, Role::Agent] {
            assert_eq!(expected["roles"][role.as_str()], plan.of(role).count(), "{name}: {role}");
        }
        let tenants = expected["tenants"].as_object().unwrap();
        assert_eq!(tenants.len(), plan.tenants.len(), "{name}");
        for tenant in &plan.tenants {
            let found: serde_json::Map<String, serde_json::Value> = plan
                .devices(&tenant.name)
                .map(|d| (d.name.clone(), serde_json::json!({ "site": d.site, "path": d.path })))
                .collect();
            assert_eq!(tenants[tenant.name.as_str()], serde_json::Value::Object(found), "{name}");
        }
    }
}

#[test]
fn top_23_the_examples_job_answers_from_the_device_itself() {
    for (name, folder) in shipped() {
        let job = load(&folder).unwrap().job;
        let text = "printf '%s %s %s %s\\n' \"$BRANCHLINE_DEVICE\" \"$BRANCHLINE_AGENT_PID\" \
                    \"$(cat /proc/sys/kernel/random/uuid)\" \"$(uname -sr)\"\n";
        assert_eq!(job.run, JobRun::Script { text: text.into(), interpreter: None }, "{name}");
        assert_eq!(job.on, "all", "{name}");
    }
}

#[test]
fn top_23_every_invalid_example_gets_its_message() {
    let folder = examples().join("invalid");
    let files = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path());
    let files: Vec<PathBuf> = files.filter(|p| p.extension().is_some_and(|e| e == "toml")).collect();
    assert!(files.len() >= 15, "only {} invalid examples", files.len());
    let mut wrong = vec![];
    for file in files {
        let expected = std::fs::read_to_string(file.with_extension("expected")).unwrap_or_default();
        let found = load(&file).map(|_| "no mistake".to_string()).unwrap_or_else(|m| m.to_string());
        if found.trim_end() != expected.trim_end() || expected.is_empty() {
            wrong.push(format!("{}:\n{found}\n", file.display()));
        }
    }
    assert!(wrong.is_empty(), "these got another message than their .expected file says:\n{}", wrong.join("\n"));
}

#[test]
fn what_is_not_said_follows_from_the_parent() {
    let plan = plan(
        "[topology]\nname='t'\n[[tenant]]\nname='a'\nsites=['x','y']\n[[tenant]]\nname='b'\nsites=['z']\n\
         [server]\nname='hq'\n[[gateway]]\nname='dmz'\n[[relay]]\nname='r'\ntenant='a'\nsite='y'\nparent='dmz'\n\
         [[relay]]\nname='s'\nparent='r'\n[[agents]]\nname='pc'\nparent='s'\n[[agents]]\nname='direct'\ntenant='b'\n\
         [job]\nargv=['true']\n",
    )
    .unwrap();
    let names: Vec<&str> = plan.nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["hq", "dmz", "r", "s", "pc", "direct"]);
    let pc = plan.node("pc").unwrap();
    assert_eq!((pc.tenant.as_str(), pc.site.as_deref(), pc.reach), ("a", Some("y"), Reach::Direct));
    assert_eq!(pc.path, ["dmz", "r", "s"]);
    assert_eq!(plan.node("r").unwrap().reach, Reach::Gateway);
    let direct = plan.node("direct").unwrap();
    assert_eq!((direct.site.as_deref(), direct.parent.as_deref()), (Some("z"), Some("hq")));
    assert!(direct.path.is_empty());
}

#[test]
fn relays_start_after_their_parents_whatever_their_order_in_the_file() {
    let plan = plan(
        "[topology]\nname='t'\n[server]\nname='hq'\n[[relay]]\nname='c'\nparent='b'\n[[relay]]\nname='b'\nparent='a'\n\
         [[relay]]\nname='a'\n[[agents]]\nname='pc'\nparent='c'\n[job]\nargv=['true']\n",
    )
    .unwrap();
    let relays: Vec<&str> = plan.of(Role::Relay).map(|n| n.name.as_str()).collect();
    assert_eq!(relays, ["a", "b", "c"]);
}

#[test]
fn top_20_eight_links_are_allowed_and_nine_are_not() {
    let chain = |relays: usize| {
        let mut text = "[topology]\nname='t'\n[server]\nname='hq'\n[job]\nargv=['true']\n".to_string();
        for n in 1..=relays {
            let parent = if n == 1 { "hq".to_string() } else { format!("r{}", n - 1) };
            text += &format!("[[relay]]\nname='r{n}'\nparent='{parent}'\n");
        }
        text + &format!("[[agents]]\nname='pc'\nparent='r{relays}'\n")
    };
    assert!(plan(&chain(7)).is_ok());
    assert_eq!(plan(&chain(8)).unwrap_err().first().unwrap().code, "too_deep");
}

#[test]
fn computer_names_at_the_bound_and_one_past_it() {
    let named = |name: &str| {
        plan(&format!("[topology]\nname='t'\n[server]\nname='hq'\n[[agents]]\nname='{name}'\n[job]\nargv=['true']\n"))
    };
    assert!(named(&"a".repeat(15)).is_ok());
    assert_eq!(named(&"a".repeat(16)).unwrap_err().first().unwrap().code, "name_too_long");
    assert_eq!(named("gateway").unwrap_err().first().unwrap().code, "reserved_name");
    assert_eq!(named("PC").unwrap_err().first().unwrap().code, "bad_name");
}
