//! Reads a log from where the caller wants it and, when following, across rotation until the
//! container has ended.

use std::io::SeekFrom;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use std::os::unix::fs::MetadataExt;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::entry::{Stream, entry};
use crate::api::{LogOptions, LogStream};

const CHUNK: usize = 64 << 10;
/// How often a followed log is looked at again. A stat a time: no inotify watch to lose at rotation.
const POLL: Duration = Duration::from_millis(100);

/// A container's log and how to learn whether the container still runs.
#[derive(Clone)]
pub struct Source {
    pub path: PathBuf,
    pub running: Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>,
}

/// The bytes a client of `GET /containerLogs` gets.
pub async fn stream(source: Source, options: LogOptions) -> std::io::Result<LogStream> {
    let mut file = File::open(&source.path).await?;
    let start = match options.tail_lines {
        Some(lines) => tail_start(&mut file, lines).await?,
        None => 0,
    };
    file.seek(SeekFrom::Start(start)).await?;
    let since = match (options.since_seconds, options.since_time) {
        (Some(seconds), _) => Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok(),
        (None, time) => time,
    };
    let only = match options.stream.as_deref() {
        Some("Stdout") => Some(Stream::Stdout),
        Some("Stderr") => Some(Stream::Stderr),
        Some(_) | None => None,
    };
    let left = options.limit_bytes;
    let reader =
        Reader { file, source, buffer: BytesMut::new(), since, only, left, options, at_line_start: true, ended: false, broken: false };
    let stream = futures::stream::unfold(reader, |mut reader| async move {
        match reader.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), reader)),
            Ok(None) => None,
            Err(_) if reader.broken => None,
            Err(e) => {
                reader.broken = true;
                Some((Err(e), reader))
            }
        }
    });
    Ok(stream.boxed())
}

struct Reader {
    file: File,
    source: Source,
    buffer: BytesMut,
    since: Option<Timestamp>,
    only: Option<Stream>,
    left: Option<u64>,
    options: LogOptions,
    /// Timestamps go before lines, not before the continuation of a cut one.
    at_line_start: bool,
    /// The container is known to have ended: one more look, then done.
    ended: bool,
    broken: bool,
}

impl Reader {
    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        loop {
            if self.left == Some(0) || self.broken {
                return Ok(None);
            }
            let out = self.take_lines();
            if !out.is_empty() {
                return Ok(Some(out));
            }
            self.buffer.reserve(CHUNK);
            if self.file.read_buf(&mut self.buffer).await? > 0 {
                continue;
            }
            if !self.options.follow {
                return Ok(None);
            }
            if self.rotated().await? {
                continue;
            }
            if self.ended {
                return Ok(None);
            }
            if !(self.source.running)().await {
                // The runtime may have written its last lines since the read above.
                self.ended = true;
                continue;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Goes on in the new file once the old one is read to its end.
    async fn rotated(&mut self) -> std::io::Result<bool> {
        let current = self.file.metadata().await?;
        let Ok(named) = tokio::fs::metadata(&self.source.path).await else { return Ok(false) };
        if named.ino() == current.ino() {
            return Ok(false);
        }
        self.file = File::open(&self.source.path).await?;
        Ok(true)
    }

    fn take_lines(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        while let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
            let line = self.buffer.split_to(end + 1);
            let Ok(entry) = entry(&line) else {
                tracing::debug!(path = %self.source.path.display(), "a log line is not in CRI's format");
                continue;
            };
            if self.since.is_some_and(|since| entry.time < since) || self.only.is_some_and(|only| only != entry.stream) {
                continue;
            }
            if self.options.timestamps && self.at_line_start {
                self.push(&mut out, entry.time_text.as_bytes());
                self.push(&mut out, b" ");
            }
            self.push(&mut out, entry.content);
            self.at_line_start = entry.content.ends_with(b"\n");
            if self.left == Some(0) {
                break;
            }
        }
        out.freeze()
    }

    fn push(&mut self, out: &mut BytesMut, bytes: &[u8]) {
        let take = self.left.map_or(bytes.len(), |left| bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        out.extend_from_slice(&bytes[..take]);
        if let Some(left) = &mut self.left {
            *left -= take as u64;
        }
    }
}

/// Offset of the last `lines` lines, found backwards block by block.
async fn tail_start(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let size = file.metadata().await?.len();
    if lines == 0 {
        return Ok(size);
    }
    let mut end = size;
    let mut found = 0;
    let mut block = vec![0; CHUNK];
    while end > 0 {
        let start = end.saturating_sub(CHUNK as u64);
        file.seek(SeekFrom::Start(start)).await?;
        let block = &mut block[..(end - start) as usize];
        file.read_exact(block).await?;
        for (index, byte) in block.iter().enumerate().rev() {
            let position = start + index as u64;
            if *byte == b'\n' && position + 1 != size {
                found += 1;
                if found == lines {
                    return Ok(position + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    const LOG: &str = "2020-01-01T00:00:01Z stdout F one\n2020-01-01T00:00:02Z stderr F two\n\
                       2020-01-01T00:00:03Z stdout P th\n2020-01-01T00:00:03.5Z stdout F ree\n";

    fn source(path: PathBuf, running: Arc<AtomicBool>) -> Source {
        Source {
            path,
            running: Arc::new(move || {
                let running = running.clone();
                Box::pin(async move { running.load(Ordering::SeqCst) })
            }),
        }
    }

    async fn all(mut stream: LogStream) -> String {
        let mut out = Vec::new();
        while let Some(part) = stream.next().await {
            out.extend_from_slice(&part.unwrap());
        }
        String::from_utf8(out).unwrap()
    }

    async fn read(options: LogOptions) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        all(stream(source(path, Arc::default()), options).await.unwrap()).await
    }

    #[tokio::test]
    async fn options() {
        let o = LogOptions::default;
        assert_eq!(read(o()).await, "one\ntwo\nthree\n");
        assert_eq!(read(LogOptions { tail_lines: Some(2), ..o() }).await, "three\n", "lines are the runtime's, as upstream");
        assert_eq!(read(LogOptions { tail_lines: Some(0), ..o() }).await, "");
        assert_eq!(read(LogOptions { tail_lines: Some(99), ..o() }).await, "one\ntwo\nthree\n");
        assert_eq!(read(LogOptions { limit_bytes: Some(6), ..o() }).await, "one\ntw");
        assert_eq!(read(LogOptions { stream: Some("Stderr".into()), ..o() }).await, "two\n");
        let since = "2020-01-01T00:00:02Z".parse().unwrap();
        assert_eq!(read(LogOptions { since_time: Some(since), ..o() }).await, "two\nthree\n");
        assert_eq!(
            read(LogOptions { timestamps: true, ..o() }).await,
            "2020-01-01T00:00:01Z one\n2020-01-01T00:00:02Z two\n2020-01-01T00:00:03Z three\n"
        );
        assert_eq!(read(LogOptions { since_seconds: Some(5), ..o() }).await, "");
    }

    #[tokio::test]
    async fn follows_across_rotation_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let running = Arc::new(AtomicBool::new(true));
        let options = LogOptions { follow: true, tail_lines: Some(0), ..Default::default() };
        let mut stream = stream(source(path.clone(), running.clone()), options).await.unwrap();
        let mut old = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        writeln!(old, "2020-01-01T00:00:04Z stdout F four").unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "four\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&path, "2020-01-01T00:00:05Z stdout F five\n").unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "five\n");
        running.store(false, Ordering::SeqCst);
        assert!(stream.next().await.is_none());
    }
}
