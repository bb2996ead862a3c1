//! The images a node makes for itself, without a registry: the pod sandbox's `pause`, a `busybox` for demos and tests, and that
//! of xebec itself.

mod archive;
mod busybox;
mod error;
mod xebec;

pub use archive::{Entry, Image};
pub use busybox::busybox;
pub use error::Error;
pub use xebec::xebec;

/// The sandbox image's name, for the container runtime's `sandbox_image`.
pub const PAUSE: &str = "localhost/xebec/pause:1";

/// The demo image's name.
pub const BUSYBOX: &str = "localhost/xebec/busybox:1";

/// The name of the image that deploy/daemonset.yaml runs.
pub const XEBEC: &str = "localhost/xebec/xebec:1";

/// The program of the sandbox image: static, waits, reaps zombies, ends on SIGTERM.
pub const PAUSE_PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// The sandbox image.
pub fn pause() -> Image {
    Image {
        name: PAUSE.to_owned(),
        entries: vec![Entry::File { path: "pause".to_owned(), mode: 0o755, content: PAUSE_PROGRAM.to_vec() }],
        entrypoint: vec!["/pause".to_owned()],
        command: Vec::new(),
        env: Vec::new(),
    }
}
