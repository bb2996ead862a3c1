//! Logs, exec, attach and port-forward: bytes through server, agent and container runtime.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
};

use xebec_tests::cluster::{Cluster, IMAGE, until};

#[test]
fn exec_passes_bytes_both_ways_and_tells_the_exit_code() {
    let cluster = Cluster::up("exec");
    cluster.sleeper("box", "default");
    assert_eq!(cluster.kubectl(&["exec", "box", "--", "echo", "hello world"]), "hello world\n");
    // The command sees the end of its input and still gets to answer: half-close.
    let text: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    let sum = cluster.kubectl_with(&["exec", "-i", "box", "--", "sh", "-c", "wc -c; echo done"], &text);
    assert_eq!(sum.split_whitespace().collect::<Vec<_>>(), [&text.len().to_string(), "done"]);
    assert_eq!(cluster.kubectl_with(&["exec", "-i", "box", "--", "cat"], &text), text);

    let failed = cluster.try_kubectl(&["exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], "");
    assert_eq!(failed.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&failed.stdout), "out\n");
    assert!(String::from_utf8_lossy(&failed.stderr).starts_with("err\n"));

    let missing = cluster.try_kubectl(&["exec", "box", "-c", "other", "--", "true"], "");
    assert!(!missing.status.success());
    let nobody = cluster.try_kubectl(&["exec", "nobody", "--", "true"], "");
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("NotFound"));
}

#[test]
fn attach_joins_the_main_process() {
    let cluster = Cluster::up("attach");
    let script = "while read line; do echo got $line; done; echo end";
    cluster.apply(&format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "reader"}}, "spec": {{"restartPolicy": "Never", "containers": [
            {{"name": "c", "image": "{IMAGE}", "stdin": true, "stdinOnce": true, "command": ["sh", "-c", "{script}"]}}]}}}}"#
    ));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/reader", "--timeout=120s"]);
    // With `stdinOnce` the container's input ends with that of the first client.
    assert_eq!(cluster.kubectl_with(&["attach", "-i", "reader"], "one\ntwo\n"), "got one\ngot two\nend\n");
    cluster.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/reader", "--timeout=60s"]);
    assert_eq!(cluster.kubectl(&["logs", "reader"]), "got one\ngot two\nend\n");

    let said =
        cluster.kubectl_with(&["run", "once", "-i", "--rm", "--restart=Never", "--image", IMAGE, "--command", "--", "cat"], "through\n");
    assert!(said.starts_with("through\n"), "{said}");
    assert!(said.contains("pod \"once\" deleted"), "{said}");
}

#[test]
fn a_terminal_has_the_size_of_the_clients() {
    let cluster = Cluster::up("terminal");
    cluster.sleeper("box", "default");
    let asks = "until [ \"$(stty size)\" = '33 77' ]; do sleep 0.1; done; tty; echo it is large enough";
    let exec = cluster.kubectl_command(&["exec", "-it", "box", "--", "sh", "-c", asks]);
    let words: Vec<String> = exec.get_args().map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''"))).collect();
    // `script` gives kubectl a terminal to run in.
    let output = Command::new("timeout")
        .args(["60", "script", "-qec", &format!("stty rows 33 cols 77; exec kubectl {}", words.join(" ")), "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("/dev/pts/0\r\n") && said.contains("it is large enough"), "{said}");
}

#[test]
fn logs_follow_and_show_what_was_before() {
    let cluster = Cluster::up("logs");
    let script = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.2; done";
    cluster.kubectl(&["run", "talker", "--image", IMAGE, "--command", "--", "sh", "-c", script]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/talker", "--timeout=120s"]);
    let mut follow = cluster.kubectl_command(&["logs", "-f", "talker"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    for wanted in 1..=5 {
        assert_eq!(lines.next().unwrap().unwrap(), format!("line {wanted}"));
    }
    follow.kill().unwrap();
    follow.wait().unwrap();
    assert_eq!(cluster.kubectl(&["logs", "talker", "--tail=1"]).lines().count(), 1);
    let stamped = cluster.kubectl(&["logs", "talker", "--timestamps"]);
    let (time, line) = stamped.lines().next().unwrap().split_once(' ').unwrap();
    assert!(time.ends_with('Z') && line == "line 1", "{stamped}");

    cluster.kubectl(&["run", "failing", "--image", IMAGE, "--command", "--", "sh", "-c", "echo only words; exit 1"]);
    until("the log of the instance before can be read", || {
        let output = cluster.try_kubectl(&["logs", "-p", "failing"], "");
        output.status.success() && output.stdout == b"only words\n"
    });
}

#[test]
fn port_forward_carries_a_connection() {
    let cluster = Cluster::up("forward");
    let script = "mkdir /www; echo through > /www/index.html; exec httpd -f -p 8080 -h /www";
    cluster.kubectl(&["run", "web", "--image", IMAGE, "--command", "--", "sh", "-c", script]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=120s"]);
    let mut forward = cluster.kubectl_command(&["port-forward", "pod/web", ":8080"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(forward.stdout.take().unwrap()).lines();
    // "Forwarding from 127.0.0.1:40000 -> 8080"
    let first = said.next().unwrap().unwrap();
    let address = first.split(' ').nth(2).unwrap().to_owned();
    for _ in 0..3 {
        let mut answer = String::new();
        until("the pod answers through the forwarded port", || {
            let Ok(mut stream) = TcpStream::connect(&address) else { return false };
            answer.clear();
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").is_ok() && stream.read_to_string(&mut answer).is_ok() && !answer.is_empty()
        });
        assert!(answer.ends_with("through\n"), "{answer}");
    }
    forward.kill().unwrap();
    forward.wait().unwrap();
}
