//! Leaves out of a case what its difference does not need.

use super::{
    kernel::Kernel,
    round::{self, Case},
};

/// The case with as little as was found to differ still, and how it differs.
pub fn shorten(kernel: &mut Kernel, mut case: Case, mut difference: String) -> (Case, String) {
    loop {
        let before = (case.setup.len(), case.steps.len());
        let mut try_without = |case: &mut Case, left_out: &dyn Fn(&mut Case)| {
            let mut less = case.clone();
            left_out(&mut less);
            if let Err(still) = round::play(kernel, &less) {
                (*case, difference) = (less, still);
                return true;
            }
            false
        };
        // The last ones first: nothing refers to them.
        for size in [64, 16, 4, 1] {
            let mut end = case.steps.len();
            while end > 0 {
                let start = end.saturating_sub(size);
                try_without(&mut case, &|less| drop(less.steps.drain(start..end)));
                end = start;
            }
            let mut end = case.setup.len();
            while end > 0 {
                let start = end.saturating_sub(size);
                try_without(&mut case, &|less| drop(less.setup.drain(start..end)));
                end = start;
            }
        }
        if before == (case.setup.len(), case.steps.len()) {
            return (case, difference);
        }
    }
}
