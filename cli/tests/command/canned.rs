//! A server that answers what a test says, and remembers what it was asked.

use branchline_node::{
    identity::{Authority, Identity, KeyPair, Subject, certificates_to_pem, https_config},
    time::{NodeTime, SystemClock},
};
use branchline_protocol::{
    id::{NodeId, Role, TenantId},
    time::Millis,
};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Still percent-encoded.
    pub path: String,
    pub query: String,
    pub authorization: String,
    pub body: Value,
}

type Answers = dyn Fn(&Request) -> (u16, Value) + Send + Sync;

/// The server with its context, in a folder of its own.
pub struct Canned {
    folder: tempfile::TempDir,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Canned {
    /// Answers until the test's process ends.
    pub fn start(answer: impl Fn(&Request) -> (u16, Value) + Send + Sync + 'static) -> Canned {
        let folder = tempfile::tempdir().unwrap();
        let tls = tls(folder.path());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let token = |tenant: &str| -> PathBuf {
            let file = folder.path().join(tenant);
            std::fs::write(&file, format!("token-of-{tenant}\n")).unwrap();
            file
        };
        let context = json!({
            "schema": 1,
            "api": format!("https://{}", listener.local_addr().unwrap()),
            "ca_file": folder.path().join("ca.pem"),
            "tokens": { "main": token("main"), "system": token("system") },
            "pid": std::process::id(),
        });
        std::fs::write(folder.path().join("context.json"), context.to_string()).unwrap();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (seen, answer): (_, Arc<Answers>) = (requests.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (tls, seen, answer) = (tls.clone(), seen.clone(), answer.clone());
                std::thread::spawn(move || serve(socket, tls, &seen, &*answer));
            }
        });
        Canned { folder, requests }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn context(&self) -> PathBuf {
        self.folder().join("context.json")
    }

    /// Every request so far, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn tls(folder: &Path) -> Arc<ServerConfig> {
    let clock = SystemClock::shared();
    let now = clock.wall();
    let authority = Authority::create(&TenantId::system(), now).unwrap();
    let key = KeyPair::generate().unwrap();
    let node: NodeId = "0190f0e0-0000-7000-8000-000000000001".parse().unwrap();
    let subject = Subject {
        tenant: TenantId::system(),
        role: Role::Server,
        node,
        epoch: 1,
        dns: vec![],
        ips: vec![[127, 0, 0, 1].into()],
    };
    let (from, to) = (Millis(now.0 - 60_000), Millis(now.0 + 86_400_000));
    let certificate = authority.issue_for_key(key.public(), &subject, from, to, 1).unwrap();
    let pem = certificates_to_pem(std::slice::from_ref(authority.certificate()));
    std::fs::write(folder.join("ca.pem"), pem).unwrap();
    let identity = Identity::new(vec![certificate], key).unwrap();
    let time = Arc::new(NodeTime::new(clock));
    let mut config = https_config(identity.chain.clone(), identity.private_key(), time).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// One request a connection; a peer that breaks off is no request.
fn serve(socket: TcpStream, tls: Arc<ServerConfig>, seen: &Mutex<Vec<Request>>, answer: &Answers) -> Option<()> {
    socket.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let stream = StreamOwned::new(ServerConnection::new(tls).ok()?, socket);
    let mut reader = BufReader::new(stream);
    let mut line = || -> Option<String> {
        let mut line = String::new();
        (reader.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_string())
    };
    let first = line()?;
    let (method, target) = (first.split(' ').next()?.to_string(), first.split(' ').nth(1)?.to_string());
    let (mut length, mut authorization) = (0, String::new());
    loop {
        let header = line()?;
        let Some((name, value)) = header.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "authorization" => authorization = value.to_string(),
            "transfer-encoding" => panic!("a canned server reads bodies with a length only"),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let (path, query) = (path.to_string(), query.to_string());
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let request = Request { method, path, query, authorization, body };
    seen.lock().unwrap().push(request.clone());
    let (status, json) = answer(&request);
    let text = json.to_string();
    let mut stream = reader.into_inner();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", text.len());
    write!(stream, "{head}connection: close\r\n\r\n{text}").ok()?;
    stream.conn.send_close_notify();
    stream.flush().ok()
}
