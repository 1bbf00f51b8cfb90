use super::*;
use branchline_protocol::id::TenantId;
use uuid::Uuid;

const NOW: Millis = Millis(1_790_000_000_000);
const KEY: Hash = Hash([1; 32]);
const OTHER_KEY: Hash = Hash([2; 32]);

fn tenant() -> TenantId {
    "acme".parse().unwrap()
}

fn request() -> EnrolRequest {
    EnrolRequest {
        protocol: 1,
        tenant: tenant(),
        role: Role::Agent,
        site: "osaka".into(),
        token: "secret".into(),
        request: Default::default(),
        facts: DeviceFacts { name: "pc-1".into(), platform: "linux".into(), ..DeviceFacts::default() },
    }
}

fn token() -> TokenRow {
    TokenRow {
        hash: Hash([9; 32]),
        tenant: tenant(),
        role: Role::Agent,
        site: "osaka".into(),
        kind: "lan".into(),
        uses_left: 1,
        expires_at: NOW,
    }
}

fn node(n: u128, role: Role, name: &str, key: Hash) -> NodeRow {
    NodeRow {
        id: NodeId(Uuid::from_u128(n)),
        tenant: tenant(),
        role,
        site: "osaka".into(),
        name: name.into(),
        host_name: String::new(),
        platform: String::new(),
        capabilities: [].into(),
        kind: "lan".into(),
        epoch: 3,
        attachment: 0,
        route: vec![],
        last_contact: None,
        enrolled_at: NOW,
        revoked_at: None,
        key_hash: key,
        tags: vec![],
    }
}

/// A case that enrols; each test spoils what it is about.
struct Example {
    request: EnrolRequest,
    key: Option<Hash>,
    token: Option<TokenRow>,
    token_before: Option<Hash>,
    population: Population,
    now: Millis,
}

fn example() -> Example {
    let (request, token) = (request(), Some(token()));
    Example { request, key: Some(KEY), token, token_before: None, population: Population::default(), now: NOW }
}

impl Example {
    fn judged(&self) -> Result<Plan, Refusal> {
        let token = self.token.as_ref();
        let Example { request, key, token_before, population, now, .. } = self;
        judge(Case { request, key: *key, token, token_before: *token_before, population, now: *now })
    }

    #[track_caller]
    fn refused(&self, status: u16, code: &str) {
        let no = self.judged().unwrap_err();
        assert_eq!((no.status, &no.code[..]), (status, code), "{no}");
    }
}

#[test]
fn enr_1_a_good_token_makes_a_new_node() {
    let plan = example().judged().unwrap();
    assert_eq!(plan, Plan { kept: None, use_token: true, key: KEY, dns: vec![], ips: vec![] });
}

#[test]
fn enr_1_unknown_expired_and_used_tokens() {
    let mut case = example();
    case.token = None;
    case.refused(401, "unknown_token");
    let mut case = example();
    case.now = NOW.plus(1);
    case.refused(403, "token_expired");
    let mut case = example();
    case.token.as_mut().unwrap().uses_left = 0;
    case.refused(409, "token_used");
}

#[test]
fn enr_7_a_token_is_for_one_role_site_and_tenant() {
    let mut case = example();
    case.request.role = Role::Relay;
    case.refused(403, "wrong_role");
    let mut case = example();
    case.request.site = "hq".into();
    case.refused(403, "wrong_site");
    let mut case = example();
    case.request.tenant = "other".parse().unwrap();
    case.refused(403, "wrong_tenant");
}

#[test]
fn a_protocol_nobody_speaks_here_is_refused_first() {
    for protocol in [PROTOCOL.start() - 1, PROTOCOL.end() + 1] {
        let mut case = example();
        (case.request.protocol, case.token) = (protocol, None);
        case.refused(409, "incompatible");
    }
}

#[test]
fn a_request_that_proves_no_key_is_refused() {
    let mut case = example();
    case.key = None;
    case.refused(400, "bad_request_certificate");
}

#[test]
fn enr_2_the_same_token_and_key_are_the_same_node_again() {
    let mut case = example();
    let old = node(5, Role::Agent, "PC-1", KEY);
    case.population.put(&old);
    case.token_before = Some(token().hash);
    case.token.as_mut().unwrap().uses_left = 0;
    let plan = case.judged().unwrap();
    assert_eq!((plan.kept, plan.use_token), (Some((old.id, 3)), false));
    case.key = Some(OTHER_KEY);
    case.refused(409, "token_used");
    case.key = Some(KEY);
    case.now = NOW.plus(1);
    case.refused(403, "token_expired");
}

#[test]
fn enr_10_a_kept_key_with_a_new_token_keeps_id_and_epoch() {
    let mut case = example();
    let old = node(5, Role::Agent, "pc-1", KEY);
    case.population.put(&old);
    case.token_before = Some(Hash([8; 32]));
    let plan = case.judged().unwrap();
    assert_eq!((plan.kept, plan.use_token), (Some((old.id, 3)), true));
    case.token.as_mut().unwrap().uses_left = 0;
    case.refused(409, "token_used");
}

#[test]
fn enr_9_a_revoked_key_stays_out_and_its_name_is_free() {
    let mut case = example();
    let mut old = node(5, Role::Agent, "pc-1", KEY);
    case.population.put(&old);
    old.revoked_at = Some(NOW);
    case.population.put(&old);
    case.refused(403, "revoked");
    case.token_before = Some(token().hash);
    case.refused(403, "revoked");
    case.key = Some(OTHER_KEY);
    assert_eq!(case.judged().unwrap().kept, None);
}

#[test]
fn enr_3_a_name_is_one_nodes_per_role_ignoring_case() {
    let mut case = example();
    case.population.put(&node(5, Role::Agent, "PC-1", OTHER_KEY));
    case.refused(409, "duplicate_name");
    let mut case = example();
    case.population.put(&node(5, Role::Relay, "pc-1", OTHER_KEY));
    assert!(case.judged().is_ok());
    // A node that is called otherwise from now on leaves its name to others.
    let mut case = example();
    case.population.put(&node(5, Role::Agent, "pc-1", OTHER_KEY));
    case.population.put(&node(5, Role::Agent, "pc-2", OTHER_KEY));
    assert!(case.judged().is_ok());
    assert_eq!(case.population.len(), 1);
}

#[test]
fn a_key_is_one_nodes() {
    let mut case = example();
    case.population.put(&node(5, Role::Relay, "osaka", KEY));
    case.refused(409, "key_in_use");
}

#[test]
fn enr_4_names_at_the_bound_and_one_past_it() {
    let mut case = example();
    case.request.facts.name = "n".repeat(15);
    assert!(case.judged().is_ok());
    case.request.facts.name = "n".repeat(16);
    case.refused(422, "name_too_long");
    case.request.facts.name = String::new();
    case.refused(422, "bad_name");
}

#[test]
fn enr_4_a_long_host_name_is_kept_and_one_past_the_bound_refused() {
    let mut case = example();
    case.request.facts.host_name = "h".repeat(255);
    assert!(case.judged().is_ok());
    case.request.facts.host_name = "h".repeat(256);
    case.refused(422, "bad_facts");
}

#[test]
fn capabilities_are_bounded() {
    let mut case = example();
    case.request.facts.capabilities = vec!["c".repeat(64); 64];
    assert!(case.judged().is_ok());
    case.request.facts.capabilities.push("c".into());
    case.refused(422, "bad_facts");
    case.request.facts.capabilities = vec!["c".repeat(65)];
    case.refused(422, "bad_facts");
}

#[test]
fn only_nodes_that_listen_bring_hosts_into_their_certificate() {
    let mut case = example();
    case.request.facts.addresses = vec!["relay.example:13000".into(), "10.0.0.7:13000".into()];
    assert_eq!(case.judged().unwrap().dns, Vec::<String>::new());
    case.request.role = Role::Relay;
    case.token.as_mut().unwrap().role = Role::Relay;
    let plan = case.judged().unwrap();
    assert_eq!((plan.dns, plan.ips), (vec!["relay.example".to_owned()], vec!["10.0.0.7".parse().unwrap()]));
    case.request.facts.addresses = vec!["0.0.0.0:1".into()];
    case.refused(422, "bad_address");
}
