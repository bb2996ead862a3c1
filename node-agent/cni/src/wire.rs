//! The call as the agent reads it, and its answer: one JSON line each way.

use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

/// The agent may wait for a pod to show in the API and for a device to appear; beyond this it is stuck.
const TIMEOUT: Duration = Duration::from_secs(110);

/// The environment the CNI specification defines.
pub struct Env {
    pub command: String,
    pub container_id: String,
    pub netns: String,
    pub ifname: String,
    pub args: String,
    pub path: String,
}

impl Env {
    /// Reads the process environment; what is unset is empty, the agent says what it misses.
    pub fn read() -> Env {
        let var = |name| std::env::var(name).unwrap_or_default();
        Env {
            command: var("CNI_COMMAND"),
            container_id: var("CNI_CONTAINERID"),
            netns: var("CNI_NETNS"),
            ifname: var("CNI_IFNAME"),
            args: var("CNI_ARGS"),
            path: var("CNI_PATH"),
        }
    }

    /// The request line.
    pub fn request(&self, config: &Value) -> Value {
        json!({
            "command": self.command,
            "containerId": self.container_id,
            "netns": self.netns,
            "ifname": self.ifname,
            "args": self.args,
            "path": self.path,
            "config": config,
        })
    }
}

/// An error as the CNI specification prints it.
#[derive(Debug)]
pub struct Failure {
    pub code: u64,
    pub msg: String,
    pub details: String,
}

impl Failure {
    pub fn new(code: u64, msg: &str, details: impl Display) -> Failure {
        Failure { code, msg: msg.into(), details: details.to_string() }
    }

    pub fn plain(code: u64, msg: &str) -> Failure {
        Failure::new(code, msg, "")
    }

    pub fn to_json(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code, "msg": self.msg, "details": self.details})
    }
}

/// Sends the request and reads the answer. The outer error is the transport's, the inner one the agent's.
pub fn exchange(socket: &str, request: &Value) -> io::Result<Result<Value, Failure>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended without an answer"));
    }
    let answer: Value = serde_json::from_str(&line)?;
    Ok(parse(&answer))
}

fn parse(answer: &Value) -> Result<Value, Failure> {
    match answer.get("error") {
        None | Some(Value::Null) => Ok(answer.get("result").cloned().unwrap_or(Value::Null)),
        Some(error) => Err(Failure {
            code: error.get("code").and_then(Value::as_u64).unwrap_or(999),
            msg: error.get("msg").and_then(Value::as_str).unwrap_or("the agent gave no reason").into(),
            details: error.get("details").and_then(Value::as_str).unwrap_or_default().into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn an_exchange_carries_results_and_errors() {
        let path = std::env::temp_dir().join(format!("xebec-cni-wire-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let agent = std::thread::spawn(move || {
            let answers = [r#"{"result":{"ips":[]}}"#, r#"{"error":{"code":100,"msg":"full"}}"#, ""];
            answers.map(|answer| {
                let (mut peer, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(peer.try_clone().unwrap()).read_line(&mut line).unwrap();
                if !answer.is_empty() {
                    peer.write_all(format!("{answer}\n").as_bytes()).unwrap();
                }
                serde_json::from_str::<Value>(&line).unwrap()
            })
        });
        let socket = path.to_str().unwrap();
        let request = json!({"command": "ADD"});
        assert_eq!(exchange(socket, &request).unwrap().unwrap(), json!({"ips": []}));
        let failure = exchange(socket, &request).unwrap().unwrap_err();
        assert_eq!((failure.code, failure.msg.as_str()), (100, "full"));
        assert_eq!(exchange(socket, &request).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(agent.join().unwrap().iter().all(|seen| *seen == request));
        std::fs::remove_file(&path).unwrap();
    }
}
