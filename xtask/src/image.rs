//! `cargo xtask image`: the node's own images as OCI archives in `target/images`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use xebec_images::Image;

use crate::{packages, sh, workspace};

/// What to make.
#[derive(clap::Args)]
pub struct Args {}

/// The archives.
#[derive(Debug, Clone)]
pub struct Archives {
    /// [`xebec_images::PAUSE`].
    pub pause: PathBuf,
    /// [`xebec_images::BUSYBOX`].
    pub busybox: PathBuf,
}

/// Makes the archives and says where they are.
pub fn run(_: &Args) -> Result<()> {
    let archives = make()?;
    println!("{}\n{}", archives.pause.display(), archives.busybox.display());
    Ok(())
}

/// Makes the archives; cheap enough to do each time.
pub fn make() -> Result<Archives> {
    packages::ensure(&[packages::NODE])?;
    let busybox = sh::which("busybox").context("busybox-static is installed but busybox is not on PATH")?;
    let dir = workspace::target().join("images");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let archives = Archives { pause: dir.join("pause.tar"), busybox: dir.join("busybox.tar") };
    write(&xebec_images::pause(), &archives.pause)?;
    write(&xebec_images::busybox(&busybox)?, &archives.busybox)?;
    Ok(archives)
}

/// Replaces the file in one step, so that another task reading it never sees half an archive.
fn write(image: &Image, path: &Path) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).with_context(context)?;
    image.write(&mut file).with_context(context)?;
    file.persist(path).with_context(context)?;
    Ok(())
}
