//! The binary containerd executes for each CNI call. It holds no network code of its own: the request goes to
//! the agent as one JSON line over a unix socket and the agent's answer is printed.
//!
//! Installed a second time under the name `loopback` it also brings a sandbox's `lo` up, which containerd asks
//! of a plugin of that name; that works without the agent.

mod loopback;
mod wire;

use std::io::{Read, Write};
use std::process::ExitCode;

use serde_json::{Value, json};
use wire::{Env, Failure};

/// Versions of the CNI specification whose results can be written.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn main() -> ExitCode {
    let env = Env::read();
    let mut input = Vec::new();
    // Configurations are small; a bound keeps a broken caller from filling memory.
    let read = std::io::stdin().take(4 << 20).read_to_end(&mut input);
    let (version, answer) = match read {
        Ok(_) => run(&env, &input),
        Err(e) => ("1.0.0".into(), Err(Failure::new(5, "cannot read the configuration from stdin", e))),
    };
    let (text, code) = match answer {
        Ok(Value::Null) => (String::new(), ExitCode::SUCCESS),
        Ok(result) => (result.to_string(), ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(&version).to_string(), ExitCode::FAILURE),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Answers one call: the configuration's `cniVersion` (for errors) and the result.
fn run(env: &Env, input: &[u8]) -> (String, Result<Value, Failure>) {
    if env.command == "VERSION" {
        let version = serde_json::from_slice::<Value>(input)
            .ok()
            .and_then(|c| c.get("cniVersion").and_then(Value::as_str).map(str::to_owned))
            .unwrap_or_else(|| "1.0.0".into());
        let answer = json!({"cniVersion": version, "supportedVersions": VERSIONS});
        return (version, Ok(answer));
    }
    let config: Value = match serde_json::from_slice(input) {
        Ok(v @ Value::Object(_)) => v,
        Ok(_) => {
            return ("1.0.0".into(), Err(Failure::plain(6, "the configuration is not a JSON object")));
        }
        Err(e) => {
            return ("1.0.0".into(), Err(Failure::new(6, "the configuration is not valid JSON", e)));
        }
    };
    let version = config.get("cniVersion").and_then(Value::as_str).unwrap_or("0.3.1").to_owned();
    if !VERSIONS.contains(&version.as_str()) {
        let failure = Failure::new(1, "incompatible CNI version", format!("{version} is asked for, known are {VERSIONS:?}"));
        return ("1.0.0".into(), Err(failure));
    }
    if let Some(first) = since(&env.command).filter(|first| place(&version) < place(first)) {
        let details = format!("{} is asked for in a configuration of version {version}", env.command);
        return (version, Err(Failure::new(1, &format!("{} came with version {first} of CNI", env.command), details)));
    }
    let answer = match config.get("type").and_then(Value::as_str) {
        Some("loopback") => loopback::call(env, &version),
        _ => forward(env, &config),
    };
    (version, answer)
}

/// The version of the specification that brought a command, if it was not the first.
fn since(command: &str) -> Option<&'static str> {
    match command {
        "CHECK" => Some("0.4.0"),
        "GC" | "STATUS" => Some("1.1.0"),
        _ => None,
    }
}

fn place(version: &str) -> Option<usize> {
    VERSIONS.iter().position(|known| *known == version)
}

/// Sends the call to the agent and returns what it says.
fn forward(env: &Env, config: &Value) -> Result<Value, Failure> {
    let Some(socket) = config.get("socket").and_then(Value::as_str) else {
        return Err(Failure::plain(7, "the configuration names no agent socket (key \"socket\")"));
    };
    wire::exchange(socket, &env.request(config)).map_err(|e| match env.command.as_str() {
        // CNI 1.1: 50 says that the plugin cannot serve ADD now.
        "STATUS" => Failure::new(50, "the xebec agent does not answer", format!("{socket}: {e}")),
        // 11: try again later.
        _ => Failure::new(11, "the xebec agent does not answer, try again later", format!("{socket}: {e}")),
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(command: &str) -> Env {
        Env {
            command: command.into(),
            container_id: "abc".into(),
            netns: "/proc/self/ns/net".into(),
            ifname: "eth0".into(),
            args: String::new(),
            path: String::new(),
        }
    }

    #[test]
    fn version_needs_no_agent() {
        let (_, answer) = run(&env("VERSION"), br#"{"cniVersion":"1.0.0"}"#);
        let answer = answer.unwrap();
        assert_eq!(answer["cniVersion"], "1.0.0");
        assert!(answer["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")));
    }

    #[test]
    fn an_absent_agent_is_error_11_for_add_and_del_and_50_for_status() {
        let config = br#"{"cniVersion":"1.1.0","name":"xebec","type":"xebec-cni","socket":"/nonexistent/cni.sock"}"#;
        for (command, code) in [("ADD", 11), ("DEL", 11), ("CHECK", 11), ("STATUS", 50)] {
            let (version, answer) = run(&env(command), config);
            let error = answer.unwrap_err().to_json(&version);
            assert_eq!(error["code"], code, "{command}");
            assert_eq!(error["cniVersion"], "1.1.0");
            assert!(error["details"].as_str().unwrap().contains("/nonexistent/cni.sock"));
        }
    }

    #[test]
    fn commands_are_those_of_the_version_that_is_asked_for() {
        // With unknown fields, as every version of the specification allows. 7: it was understood, but names no socket.
        let config = |version: &str| json!({"cniVersion": version, "name": "x", "type": "xebec-cni", "prevResult": null, "capabilities": 5, "unknown": {"deep": [1]}});
        let code = |command: &str, version: &str| {
            let (said, answer) = run(&env(command), config(version).to_string().as_bytes());
            answer.unwrap_err().to_json(&said)["code"].as_u64()
        };
        for (version, check, later) in [("0.3.0", 1, 1), ("0.3.1", 1, 1), ("0.4.0", 7, 1), ("1.0.0", 7, 1), ("1.1.0", 7, 7)] {
            for (command, expected) in [("ADD", 7), ("DEL", 7), ("CHECK", check), ("GC", later), ("STATUS", later)] {
                assert_eq!(code(command, version), Some(expected), "{command} {version}");
            }
        }
        for version in ["", "0.1.0", "0.2.0", "0.4", "1.0", "1.1.1", "2.0.0", "v1.0.0"] {
            for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
                assert_eq!(code(command, version), Some(1), "{command} {version:?}");
            }
        }
        // Versions are texts; any other is as if none were named.
        let (_, answer) = run(&env("ADD"), br#"{"cniVersion":1.0,"type":"xebec-cni"}"#);
        assert_eq!(answer.unwrap_err().to_json("")["code"], 7);
    }

    #[test]
    fn broken_input_gets_the_specified_codes() {
        for (input, code) in
            [(&b"{"[..], 6), (b"[]", 6), (b"", 6), (br#"{"cniVersion":"9.0.0","socket":"/x"}"#, 1), (br#"{"cniVersion":"1.0.0"}"#, 7)]
        {
            let (version, answer) = run(&env("ADD"), input);
            assert_eq!(answer.unwrap_err().to_json(&version)["code"], code);
        }
    }
}
