//! The process that answers. It knows nothing but the last report, and ends only when it is told to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::answer::{self, Answer};
use super::{Failure, Reply, Report, VERSION, line};

/// Whom a port answers for; none: the node.
type Subject = Option<(String, String)>;

#[derive(Default)]
struct State {
    report: Report,
    /// Agents connected, and when the last one was.
    agents: usize,
    last_seen: jiff::Timestamp,
    /// Open ports; dropping the guard closes one.
    open: BTreeMap<u16, (Subject, DropGuard)>,
}

type Shared = Arc<Mutex<State>>;

/// Answers until an agent says to end.
///
/// # Errors
/// If the socket cannot be opened.
pub async fn respond(socket: &Path) -> io::Result<()> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let agents = UnixListener::bind(socket)?;
    let end = CancellationToken::new();
    let shared = Shared::default();
    loop {
        let stream = tokio::select! {
            () = end.cancelled() => break,
            accepted = agents.accept() => accepted?.0,
        };
        let (shared, end) = (shared.clone(), end.clone());
        tokio::spawn(async move {
            shared.lock().agents += 1;
            // An agent that was killed in the middle of a line is one that is gone.
            let leave = listen(stream, &shared).await.unwrap_or(false);
            let mut state = shared.lock();
            state.agents -= 1;
            state.last_seen = jiff::Timestamp::now();
            if leave {
                state.open.clear();
                end.cancel();
            }
        });
    }
    std::fs::remove_file(socket)
}

/// Takes an agent's reports. True: it said to end.
async fn listen(stream: UnixStream, shared: &Shared) -> io::Result<bool> {
    let (reader, mut writer) = stream.into_split();
    let mut reply = Reply { version: VERSION.to_owned(), failed: Vec::new() };
    writer.write_all(line(&reply)?.as_bytes()).await?;
    let mut lines = BufReader::new(reader).lines();
    while let Some(text) = lines.next_line().await? {
        let report: Report = serde_json::from_str(&text).map_err(io::Error::other)?;
        if report.leave {
            return Ok(true);
        }
        reply.failed = take(shared, report);
        writer.write_all(line(&reply)?.as_bytes()).await?;
    }
    Ok(false)
}

/// Opens and closes ports as the report wants them.
fn take(shared: &Shared, mut report: Report) -> Vec<Failure> {
    let mut state = shared.lock();
    if report.services.is_none() {
        report.services = state.report.services.take();
    }
    let mut wanted: BTreeMap<u16, Subject> = BTreeMap::from([(report.port, None)]);
    for s in report.services.iter().flatten() {
        wanted.entry(s.port).or_insert_with(|| Some((s.namespace.clone(), s.name.clone())));
    }
    state.open.retain(|port, (subject, _)| wanted.get(port) == Some(subject));
    let mut failed = Vec::new();
    for (port, subject) in wanted {
        if state.open.contains_key(&port) {
            continue;
        }
        match bind(port) {
            Ok(listener) => {
                let end = CancellationToken::new();
                tokio::spawn(serve(listener, shared.clone(), subject.clone(), end.clone()));
                state.open.insert(port, (subject, end.drop_guard()));
            }
            Err(error) => failed.push(Failure { service: subject, port, error: error.to_string() }),
        }
    }
    state.report = report;
    failed
}

/// On every address of both families, or of IPv4 where the kernel has no other.
fn bind(port: u16) -> io::Result<TcpListener> {
    let on = |address: SocketAddr| {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(128)
    };
    match on((Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => on((Ipv4Addr::UNSPECIFIED, port).into()),
        other => other,
    }
}

async fn serve(listener: TcpListener, shared: Shared, subject: Subject, end: CancellationToken) {
    loop {
        let stream = tokio::select! {
            () = end.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // Out of descriptors, or the client left at once.
                Err(_) => {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    continue;
                }
            },
        };
        let (shared, subject, end) = (shared.clone(), subject.clone(), end.clone());
        // Sockets of both families get what comes over IPv4 with addresses that are made of it.
        let over_v4 = stream.local_addr().is_ok_and(|local| local.ip().to_canonical().is_ipv4());
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(&shared, &subject, request.uri().path(), over_v4);
                async move { Ok::<_, Infallible>(response(answer)) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            let connection = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = end.cancelled() => {}
                // What a client does wrong is its own affair.
                _ = connection => {}
            }
        });
    }
}

fn answer(shared: &Shared, subject: &Subject, path: &str, over_v4: bool) -> Answer {
    let state = shared.lock();
    match subject {
        Some((namespace, name)) => answer::service(&state.report, namespace, name, over_v4),
        None => {
            let now = jiff::Timestamp::now();
            let reported = if state.agents > 0 { now } else { state.last_seen };
            answer::node(&state.report, path, &now.to_string(), &reported.to_string())
        }
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = http::StatusCode::from_u16(answer.status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in answer.headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::super::{Endpoints, Service};
    use super::*;
    use tokio::io::AsyncReadExt;

    async fn get(port: u16, path: &str) -> io::Result<String> {
        get_at(Ipv4Addr::LOCALHOST.into(), port, path).await
    }

    async fn get_at(ip: std::net::IpAddr, port: u16, path: &str) -> io::Result<String> {
        let mut stream = tokio::net::TcpStream::connect((ip, port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    struct Agent(BufReader<UnixStream>);

    impl Agent {
        async fn connect(path: &Path) -> Agent {
            let stream = loop {
                match UnixStream::connect(path).await {
                    Ok(stream) => break stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            let mut agent = Agent(BufReader::new(stream));
            assert_eq!(agent.reply().await.version, VERSION);
            agent
        }

        async fn reply(&mut self) -> Reply {
            let mut text = String::new();
            self.0.read_line(&mut text).await.unwrap();
            serde_json::from_str(&text).unwrap()
        }

        async fn say(&mut self, report: &Report) -> Vec<Failure> {
            self.0.get_mut().write_all(line(report).unwrap().as_bytes()).await.unwrap();
            self.reply().await.failed
        }
    }

    #[tokio::test]
    async fn answers_outlive_the_agent_and_ports_follow_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("health.sock");
        let responder = tokio::spawn({
            let path = path.clone();
            async move { respond(&path).await }
        });
        let (node, web, taken) = (free_port(), free_port(), std::net::TcpListener::bind("[::]:0").unwrap());
        let service = |port| Service { namespace: "ns".into(), name: "web".into(), port, local_endpoints: Endpoints { v4: 1, v6: 3 } };
        let report = |services| Report { port: node, healthy: true, eligible: true, services, ..Report::default() };
        let mut agent = Agent::connect(&path).await;
        assert_eq!(agent.say(&report(Some(vec![service(web)]))).await, vec![]);
        assert!(get(web, "/any").await.unwrap().starts_with("HTTP/1.1 200 OK"));
        let other_family = get_at(Ipv6Addr::LOCALHOST.into(), web, "/").await.unwrap();
        assert!(other_family.contains("\"localEndpoints\": 3"), "each family counts its own: {other_family}");
        drop(agent);
        assert!(get(web, "/any").await.unwrap().contains("\"localEndpoints\": 1"), "without an agent");
        assert!(get(node, "/healthz").await.unwrap().starts_with("HTTP/1.1 200 OK"));
        let mut next = Agent::connect(&path).await;
        next.say(&report(None)).await;
        assert!(get(web, "/any").await.unwrap().starts_with("HTTP/1.1 200"), "an agent that does not know yet closes nothing");
        let clash = taken.local_addr().unwrap().port();
        let failed = next.say(&report(Some(vec![service(clash)]))).await;
        assert_eq!(failed.iter().map(|f| (f.port, f.service.clone().unwrap().1)).collect::<Vec<_>>(), [(clash, "web".to_owned())]);
        assert!(get(web, "/any").await.is_err(), "closed with its Service");
        drop(taken);
        assert_eq!(next.say(&report(Some(vec![service(clash)]))).await, vec![], "tried again");
        next.0.get_mut().write_all(line(&Report { leave: true, ..Report::default() }).unwrap().as_bytes()).await.unwrap();
        responder.await.unwrap().unwrap();
        assert!(!path.exists() && get(node, "/healthz").await.is_err(), "it ends when it is told to");
    }
}
