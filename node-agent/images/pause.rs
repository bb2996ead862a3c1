//! The first process of a pod: keeps its namespaces alive and reaps its orphans.
//!
//! All signals it acts on are blocked and waited for, so it needs no handlers and never races with one. A blocked signal
//! reaches even process 1 of a PID namespace, whose unhandled signals the kernel otherwise drops.

#![no_std]
#![no_main]

use core::arch::asm;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("pause.rs knows the system calls of x86_64 only");

const RT_SIGPROCMASK: usize = 14;
const EXIT: usize = 60;
const WAIT4: usize = 61;
const RT_SIGTIMEDWAIT: usize = 128;

const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;
const SIGINT: u64 = 2;
const SIGTERM: u64 = 15;
const SIGCHLD: u64 = 17;
/// Bytes of the kernel's signal set.
const SET_SIZE: usize = 8;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    exit(2)
}

/// Where the kernel starts the program. Nothing on the stack is read, so its alignment does not matter.
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    let set: u64 = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1) | 1 << (SIGCHLD - 1);
    let set_address = &raw const set as usize;
    // SAFETY: the set outlives both calls, which only read it; null means "no old set", "no details", "no timeout".
    unsafe { syscall(RT_SIGPROCMASK, [SIG_BLOCK, set_address, 0, SET_SIZE]) };
    loop {
        // SAFETY: as above.
        let signal = unsafe { syscall(RT_SIGTIMEDWAIT, [set_address, 0, 0, SET_SIZE]) };
        if signal == SIGINT as isize || signal == SIGTERM as isize {
            exit(0);
        }
        // One SIGCHLD can stand for several children.
        // SAFETY: null pointers mean that neither status nor usage is wanted.
        while unsafe { syscall(WAIT4, [usize::MAX, 0, WNOHANG, 0]) } > 0 {}
    }
}

fn exit(code: usize) -> ! {
    loop {
        // SAFETY: ends the process.
        unsafe { syscall(EXIT, [code, 0, 0, 0]) };
    }
}

/// # Safety
/// The arguments must be what the kernel expects of that call.
unsafe fn syscall(number: usize, args: [usize; 4]) -> isize {
    let result: isize;
    // SAFETY: the registers are those of the x86_64 system call convention; rcx and r11 are what it destroys.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}
