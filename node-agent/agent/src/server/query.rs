//! Query parameters, in both spellings in use: the API server's (`input`, `output`) and the API's own (`stdin`, `stdout`).

use percent_encoding::percent_decode_str;
use xebec_pods::{ExecOptions, LogOptions};

/// Decoded parameters in order.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Bytes that are not UTF-8 are replaced.
    pub fn parse(query: Option<&str>) -> Query {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        };
        Query(query.unwrap_or_default().split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Every value of one of the names.
    pub fn all(&self, names: &[&str]) -> Vec<String> {
        self.0.iter().filter(|(key, _)| names.contains(&key.as_str())).map(|(_, value)| value.clone()).collect()
    }

    fn flag(&self, names: &[&str]) -> bool {
        names.iter().any(|name| matches!(self.get(name), Some("1" | "t" | "T" | "true" | "True" | "TRUE")))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        self.get(name).map(|value| value.parse().map_err(|_| format!("invalid value {value:?} for {name}"))).transpose()
    }

    /// # Errors
    /// What is wrong with the parameters.
    pub fn logs(&self) -> Result<LogOptions, String> {
        let since_seconds: Option<i64> = self.number("sinceSeconds")?;
        if since_seconds.is_some_and(|seconds| seconds < 1) {
            return Err("sinceSeconds must be greater than 0".to_owned());
        }
        let limit_bytes: Option<u64> = self.number("limitBytes")?;
        if limit_bytes == Some(0) {
            return Err("limitBytes must be greater than 0".to_owned());
        }
        Ok(LogOptions {
            follow: self.flag(&["follow"]),
            previous: self.flag(&["previous"]),
            timestamps: self.flag(&["timestamps"]),
            tail_lines: match self.get("tailLines") {
                Some("all") => None,
                _ => self.number("tailLines")?,
            },
            limit_bytes,
            since_seconds,
            since_time: self.number("sinceTime")?,
            stream: self.get("stream").map(str::to_owned),
        })
    }

    /// # Errors
    /// If no stream is wanted.
    pub fn exec(&self) -> Result<ExecOptions, String> {
        let options = ExecOptions {
            command: self.all(&["command"]),
            stdin: self.flag(&["input", "stdin"]),
            stdout: self.flag(&["output", "stdout"]),
            tty: self.flag(&["tty"]),
            stderr: self.flag(&["error", "stderr"]),
        };
        if !options.stdin && !options.stdout && !options.stderr {
            return Err("you must specify at least 1 of stdin, stdout, stderr".to_owned());
        }
        // With a terminal there is one output; upstream drops stderr too.
        Ok(ExecOptions { stderr: options.stderr && !options.tty, ..options })
    }

    /// Ports of a WebSocket port-forward.
    ///
    /// # Errors
    /// If one is no port.
    pub fn ports(&self) -> Result<Vec<u16>, String> {
        let parse = |value: &str| match value.trim().parse() {
            Ok(0) | Err(_) => Err(format!("invalid port {value:?}")),
            Ok(port) => Ok(port),
        };
        self.all(&["port", "ports"]).iter().flat_map(|value| value.split(',')).map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_streams_are_understood() {
        let options = Query::parse(Some("command=ls&command=-l+%2F&input=1&output=1&tty=1&error=1")).exec().unwrap();
        assert_eq!(options.command, ["ls", "-l /"]);
        assert!(options.stdin && options.stdout && options.tty && !options.stderr);
        let options = Query::parse(Some("stdout=true&stderr=true")).exec().unwrap();
        assert!(options.stdout && options.stderr && !options.stdin && !options.tty);
        assert!(Query::parse(Some("command=ls&stdin=0")).exec().is_err());
    }

    #[test]
    fn log_options_are_checked() {
        let options = Query::parse(Some("follow=true&tailLines=5&sinceTime=2024-01-02T03:04:05Z")).logs().unwrap();
        assert!(options.follow && !options.previous);
        assert_eq!(options.tail_lines, Some(5));
        assert_eq!(options.since_time.unwrap().to_string(), "2024-01-02T03:04:05Z");
        for bad in ["tailLines=-1", "tailLines=x", "sinceSeconds=0", "limitBytes=0", "sinceTime=yesterday"] {
            assert!(Query::parse(Some(bad)).logs().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_come_repeated_or_in_a_list() {
        assert_eq!(Query::parse(Some("port=80,81&ports=82")).ports().unwrap(), [80, 81, 82]);
        assert!(Query::parse(Some("port=0")).ports().is_err());
        assert_eq!(Query::parse(None).ports().unwrap(), Vec::<u16>::new());
    }
}
