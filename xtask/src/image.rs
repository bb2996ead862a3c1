//! `cargo xtask image`: xebec and the node's own images as OCI archives in `target/images`, without any registry.

#[cfg(test)]
mod dockerfile;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use xebec_images::Image;

use crate::{
    build::{self, Profile},
    packages, sh, workspace,
};

/// What to make.
#[derive(clap::Args)]
pub struct Args {
    /// Which binaries the image of xebec has.
    #[arg(long, value_enum, default_value = "release", env = "XEBEC_PROFILE")]
    profile: Profile,
    /// The binaries are built: use them as they are.
    #[arg(long)]
    no_build: bool,
}

/// The archives.
#[derive(Debug, Clone)]
pub struct Archives {
    /// [`xebec_images::PAUSE`].
    pub pause: PathBuf,
    /// [`xebec_images::BUSYBOX`].
    pub busybox: PathBuf,
}

/// Makes the archives and says where they are.
pub fn run(args: &Args) -> Result<()> {
    if !args.no_build {
        build::binaries(args.profile)?;
    }
    let archives = make()?;
    println!("{}\n{}\n{}", xebec(args.profile)?.display(), archives.pause.display(), archives.busybox.display());
    Ok(())
}

/// Makes the archive of [`xebec_images::XEBEC`] from binaries that are built.
pub fn xebec(profile: Profile) -> Result<PathBuf> {
    let binaries = profile.binaries();
    let libraries = match profile {
        Profile::Release => Vec::new(),
        Profile::Dev => libraries(&binaries.xebec)?,
    };
    let dir = workspace::target().join("images");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let path = dir.join(format!("xebec{}.tar", if profile == Profile::Dev { "-dev" } else { "" }));
    write(&xebec_images::xebec(&binaries.xebec, &binaries.cni, &libraries)?, &path)?;
    Ok(path)
}

/// What a program that is not static is linked to.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = sh::quiet(sh::cmd("ldd", [program]).env("LC_ALL", "C"))?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
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
