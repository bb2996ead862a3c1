//! Programs at pods' devices: by the blocks that all of them share, or by links of each device, as agents before there were
//! blocks attached them.

use std::os::fd::AsFd;

use aya::programs::tc::SchedClassifier;

use super::{Hook, Programs, chain};
use crate::Error;
use crate::config::PodPrograms;
use crate::device::blocks::Classifier;

/// What our filters are called, which tells them from anybody else's: of what leaves pods, and of what reaches them.
const FILTERS: [&str; 2] = ["xebec-from_pod", "xebec-to_pod"];

impl Programs {
    /// Puts the programs at a pod's device; if it has others of ours it gets these in their place. Links that hold are kept: a
    /// device that is up loses packets when it is bound to blocks.
    pub fn attach_pod(&mut self, device: (&str, u32), how: PodPrograms) -> Result<(), Error> {
        match how {
            PodPrograms::Blocks if self.is_attached(device, Hook::POD) && !self.blocks.is_bound(device.1) => {
                self.attach_device(device, Hook::POD)
            }
            PodPrograms::Blocks => {
                self.bind(device)?;
                self.detach_pod(device.0)
            }
            PodPrograms::Links => {
                self.attach_device(device, Hook::POD)?;
                self.blocks.unbind(device.1).map_err(Error::netlink(format!("take {} off the tc blocks", device.0)))
            }
        }
    }

    /// Whether a pod's device has both programs.
    pub fn is_pod_attached(&self, device: (&str, u32)) -> bool {
        self.blocks.runs(device.1, FILTERS) || self.is_attached(device, Hook::POD)
    }

    /// Removes the links of a pod's device, if it has any; what blocks run at it ends with the device.
    pub fn detach_pod(&self, device: &str) -> Result<(), Error> {
        self.detach_device(device, Hook::POD)
    }

    /// Pods' devices that have links.
    pub fn linked_pods(&self) -> Vec<String> {
        self.attached_devices(Hook::POD)
    }

    fn bind(&self, device: (&str, u32)) -> Result<(), Error> {
        self.blocks.bind(device.1, self.classifiers()?).map_err(fail(device.0))
    }

    /// Has the blocks run these programs.
    pub(super) fn hand_over_blocks(&self) -> Result<(), Error> {
        self.blocks.replace(self.classifiers()?).map_err(fail("the pods"))
    }

    fn classifiers(&self) -> Result<[Classifier<'_>; 2], Error> {
        let [leaving, reaching] = FILTERS;
        Ok([self.classifier(Hook::FromPod, leaving)?, self.classifier(Hook::ToPod, reaching)?])
    }

    fn classifier<'a>(&'a self, hook: Hook, name: &'a str) -> Result<Classifier<'a>, Error> {
        let failed = |reason: String| Error::Load { what: format!("program {}", hook.program()), reason };
        let program: Option<&SchedClassifier> = self.ebpf.program(hook.program()).and_then(|p| p.try_into().ok());
        let program = program.ok_or_else(|| failed("the embedded object has none of that name and type".into()))?;
        let id = program.info().map_err(|e| failed(chain(&e)))?.id();
        let fd = program.fd().map_err(|e| failed(chain(&e)))?.as_fd();
        Ok(Classifier { name, fd, id })
    }
}

fn fail(to: &str) -> impl FnOnce(std::io::Error) -> Error {
    let to = to.to_owned();
    move |e| Error::Attach {
        program: FILTERS.join(" and "),
        to,
        reason: format!("{e} (the kernel needs CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF)"),
    }
}
