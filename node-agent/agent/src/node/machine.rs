//! What the machine is and has, read from procfs and sysfs.

use std::{fs, path::Path};

/// Facts of the machine. Sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub cpus: u64,
    pub memory: u64,
    pub swap: u64,
    /// Size of the file system that holds the agent's data.
    pub storage: u64,
    /// (page size in bytes, pages), for each size the kernel offers.
    pub huge_pages: Vec<(u64, u64)>,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel_version: String,
    pub os_image: String,
}

/// What can be read; the rest is empty or 0, as kubelet has it on machines that hide something.
pub(crate) fn read(data_dir: &Path) -> Machine {
    let text = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let memory = text("/proc/meminfo");
    let machine_id = [text("/etc/machine-id"), text("/var/lib/dbus/machine-id")].into_iter().find(|id| !id.is_empty()).unwrap_or_default();
    let system_uuid = match text("/sys/class/dmi/id/product_uuid") {
        uuid if uuid.is_empty() => machine_id.clone(),
        uuid => uuid,
    };
    Machine {
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        memory: kib(&memory, "MemTotal") * 1024,
        swap: kib(&memory, "SwapTotal") * 1024,
        storage: nix::sys::statvfs::statvfs(data_dir).map_or(0, |stat| stat.blocks() * stat.fragment_size()),
        huge_pages: huge_pages(),
        machine_id,
        system_uuid,
        boot_id: text("/proc/sys/kernel/random/boot_id"),
        kernel_version: text("/proc/sys/kernel/osrelease"),
        os_image: pretty_name(&text("/etc/os-release")),
    }
}

/// A line of `/proc/meminfo`, in KiB.
fn kib(text: &str, name: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}

fn pretty_name(os_release: &str) -> String {
    os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).map(|name| name.trim_matches('"').to_owned()).unwrap_or_default()
}

fn huge_pages() -> Vec<(u64, u64)> {
    let mut sizes: Vec<(u64, u64)> = fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let kib: u64 = entry.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let pages = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
            Some((kib * 1024, pages))
        })
        .collect();
    sizes.sort_unstable();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_by_their_whole_name() {
        let text = "MemTotalX:  1 kB\nMemTotal:       24576 kB\nSwapTotal:           0 kB";
        assert_eq!(kib(text, "MemTotal"), 24576);
        assert_eq!(kib(text, "SwapTotal"), 0);
        assert_eq!(kib(text, "Missing"), 0);
        assert_eq!(pretty_name("ID=x\nPRETTY_NAME=\"An OS 1\"\n"), "An OS 1");
    }

    #[test]
    fn this_machine_has_what_every_machine_has() {
        let machine = read(Path::new("/"));
        assert!(machine.cpus > 0 && machine.memory > 1 << 20 && machine.storage > 1 << 20);
        assert_eq!(machine.boot_id.len(), 36);
        assert!(!machine.kernel_version.is_empty());
    }
}
