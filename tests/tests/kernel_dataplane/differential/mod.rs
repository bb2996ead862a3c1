//! The packet logic twice, as it runs on the host and as the kernel has it loaded, on random contents of the maps and random
//! packets: same verdict, same bytes, same counters, same entries left behind.
//!
//! `XEBEC_DIFFERENTIAL_PACKETS` says how many packets (a few hundred thousand by default), `XEBEC_DIFFERENTIAL_SEED` where to begin:
//! a failure names its seed and the shortest way to it that was found.

mod entries;
// Its lines are as long as those of its own crate.
#[rustfmt::skip]
#[path = "../../../../ebpf/logic/tests/fake/mod.rs"]
mod fake;
mod host;
mod kernel;
mod packets;
mod round;
mod shorten;
mod states;
mod tally;
mod world;

use kernel::Kernel;
use round::Case;
use tally::Tally;

const PACKETS: u64 = 300_000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

#[test]
fn host_and_kernel_agree_on_every_packet() {
    world::space().run(agree);
}

fn agree() {
    let packets = number("XEBEC_DIFFERENTIAL_PACKETS", PACKETS);
    let mut seed = number("XEBEC_DIFFERENTIAL_SEED", 1);
    // The second runs out of places for flows and translations.
    let mut kernels = [Kernel::load(None, 0xb504_f333), Kernel::load(Some(kernel::FEW), 0)];
    kernels[0].attach();
    let mut tally = Tally::default();
    while tally.packets < packets {
        let case = Case::new(seed);
        let kernel = &mut kernels[usize::from(case.few_places)];
        match round::play(kernel, &case) {
            Ok(played) => tally.add(&played),
            Err(difference) => {
                let (case, difference) = shorten::shorten(kernel, case, difference);
                panic!("seed {seed}: {difference}\nfrom\n{case}");
            }
        }
        seed += 1;
    }
    println!("{tally}");
    tally.is_complete();
}
