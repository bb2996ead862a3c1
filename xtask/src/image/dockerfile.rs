//! `deploy/Dockerfile` beside `cargo xtask image`: the same programs, built the same way, on the same file system. Its steps
//! that need no network and no compiler are really run, below a directory.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use xebec_images::Entry;

use crate::workspace;

/// Its instructions, with their continued lines in one.
fn instructions() -> Vec<(String, String)> {
    let text = fs::read_to_string(workspace::root().join("deploy/Dockerfile")).expect("the recipe");
    let lines = text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let split = |line: &str| line.split_once(' ').map(|(word, rest)| (word.to_owned(), rest.trim().to_owned()));
    lines.lines().filter_map(split).collect()
}

fn all<'a>(of: &'a [(String, String)], word: &str) -> Vec<&'a str> {
    of.iter().filter(|(w, _)| w == word).map(|(_, rest)| rest.as_str()).collect()
}

/// What is where: mode, and content or target. Directories above others' places are made by whoever unpacks.
type Tree = BTreeMap<String, (u32, Vec<u8>)>;

fn tree_of(entries: &[Entry]) -> Tree {
    let of = |entry: &Entry| match entry {
        Entry::Directory { path, mode } => (path.clone(), (*mode, Vec::new())),
        Entry::File { path, mode, content } => (path.clone(), (*mode, content.clone())),
        Entry::Symlink { path, target } => (path.clone(), (0o777, target.clone().into_bytes())),
    };
    entries.iter().map(of).collect()
}

fn tree_in(root: &Path, below: &Path, found: &mut Tree) {
    for entry in fs::read_dir(below).expect("a directory").flatten() {
        let path = entry.path();
        let name = path.strip_prefix(root).expect("below").display().to_string();
        let metadata = entry.metadata().expect("metadata");
        let mode = metadata.permissions().mode() & 0o7777;
        let content = match (metadata.is_symlink(), metadata.is_dir()) {
            (true, _) => fs::read_link(&path).expect("a link").display().to_string().into_bytes(),
            (_, true) => Vec::new(),
            (_, false) => fs::read(&path).expect("a file"),
        };
        found.insert(name, (mode, content));
        if metadata.is_dir() {
            tree_in(root, &path, found);
        }
    }
}

#[test]
fn the_recipe_makes_the_same_image() {
    let recipe = instructions();
    let split = recipe.iter().rposition(|(word, _)| word == "FROM").expect("a last stage");
    let (build, last) = recipe.split_at(split);
    let version = env!("CARGO_PKG_RUST_VERSION");
    assert!(all(build, "FROM")[0].starts_with(&format!("rust:{version}-")), "the compiler the workspace asks for");
    assert!(all(build, "RUN")[0].contains("protobuf-compiler"));
    assert_eq!(all(build, "COPY"), [". ."]);

    // The programs, as `build::binaries` builds them.
    let cargo = all(build, "RUN")[1];
    assert_eq!(all(build, "ENV"), ["RUSTFLAGS=\"-C target-feature=+crt-static\""]);
    for (package, profile) in [("xebec", "release"), ("xebec-cni", "small")] {
        let line = format!("cargo build --locked --target x86_64-unknown-linux-gnu --profile {profile} -p {package}");
        assert!(cargo.split("&&").any(|part| part.trim() == line), "{line}: {cargo}");
    }
    // What it leaves out is no source.
    let ignored = fs::read_to_string(workspace::root().join("deploy/Dockerfile.dockerignore")).expect("what is left out");
    assert_eq!(ignored.lines().collect::<Vec<_>>(), [".git", "target", "ebpf/programs/target"]);

    // Its file system.
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    let built = crate::build::Profile::Release.binaries();
    let place = |path: &PathBuf| dir.path().join("target").join(path.strip_prefix(workspace::target()).expect("below the target"));
    let (xebec, cni) = (place(&built.xebec), place(&built.cni));
    for (path, content) in [(&xebec, "the program"), (&cni, "the plugin")] {
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, content).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
    }
    let script = all(build, "RUN")[2].replace("/image", &image.display().to_string());
    let output = Command::new("sh").arg("-ec").arg(format!("umask 022; {script}")).current_dir(dir.path()).output().expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut tree = Tree::new();
    tree_in(&image, &image, &mut tree);
    let made = xebec_images::xebec(&xebec, &cni, &[]).expect("an image");
    assert_eq!(tree, tree_of(&made.entries));

    // And how it is started.
    assert_eq!(all(last, "FROM"), ["scratch"]);
    assert_eq!(all(last, "COPY"), ["--from=build /image/ /"]);
    assert_eq!(all(last, "ENV"), made.env);
    assert_eq!(all(last, "WORKDIR"), ["/"]);
    assert_eq!(all(last, "ENTRYPOINT"), [serde_json::to_string(&made.entrypoint).expect("JSON")]);
    assert!(made.command.is_empty() && all(last, "CMD").is_empty());
    assert_eq!(last.len(), 5, "no user, no labels: the image has none");
    let daemonset = fs::read_to_string(workspace::root().join("deploy/daemonset.yaml")).expect("the manifest");
    assert!(daemonset.contains(&format!("image: {}\n", made.name)), "which is what the DaemonSet runs");
}
