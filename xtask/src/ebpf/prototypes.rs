//! Holds the functions of a BPF object to five parameters, as they are written in the source.
//!
//! Five is what fits in registers. LLVM drops a sixth that it can do without, and kernels before 7.2 look at the code
//! alone, so nothing tells. From 7.2 on a function may have more, on the stack, and the verifier believes BTF, which has
//! the source's parameters: it refuses each call of such a function, for a sixth argument that nobody wrote.

use anyhow::{Context, Result, bail};

use super::strip;

const MAGIC: u32 = 0xeb9f;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const MAX_PARAMETERS: u32 = 5;

/// Refuses an object with a function of more than five parameters.
///
/// # Errors
/// Names those functions.
pub fn check(elf: &[u8]) -> Result<()> {
    let btf = strip::section(elf, ".BTF")?.context("the object has no BTF")?;
    let long: Vec<String> = functions(&btf)?
        .into_iter()
        .filter(|(_, count)| *count > MAX_PARAMETERS)
        .map(|(name, count)| format!("{name} ({count})"))
        .collect();
    if !long.is_empty() {
        bail!(
            "functions with more than {MAX_PARAMETERS} parameters in the source, which kernels from 7.2 on refuse to call; \
             pass a struct by reference, or let the function be inlined: {}",
            long.join(", ")
        );
    }
    Ok(())
}

/// Each function's name and number of parameters.
fn functions(btf: &[u8]) -> Result<Vec<(String, u32)>> {
    if word(btf, 0)? & 0xffff != MAGIC {
        bail!("not BTF of this byte order");
    }
    let part = |at: usize| -> Result<&[u8]> {
        let (start, len) = (word(btf, 4)?.saturating_add(word(btf, at)?), word(btf, at + 4)?);
        btf.get(start as usize..(start as usize).saturating_add(len as usize)).context("BTF is cut off")
    };
    let (types, strings) = (part(8)?, part(16)?);
    // Number 0 is `void`.
    let mut parameters = vec![0];
    let mut found = Vec::new();
    let mut at = 0;
    while at < types.len() {
        let (name, info, of) = (word(types, at)?, word(types, at + 4)?, word(types, at + 8)?);
        let (kind, count) = (info >> 24 & 0x1f, info & 0xffff);
        parameters.push(if kind == FUNC_PROTO { count } else { 0 });
        if kind == FUNC {
            found.push((name, of));
        }
        at += 12 + more(kind, count)? as usize;
    }
    let named = |(name, of): (u32, u32)| -> Result<(String, u32)> {
        let text = strings.get(name as usize..).context("a name outside of BTF")?;
        let text = text.split(|b| *b == 0).next().unwrap_or_default();
        let count = parameters.get(of as usize).context("a type outside of BTF")?;
        Ok((String::from_utf8_lossy(text).into_owned(), *count))
    };
    found.into_iter().map(named).collect()
}

/// How many bytes follow a type of this kind with so many members.
fn more(kind: u32, count: u32) -> Result<u32> {
    Ok(match kind {
        // Pointers, forward declarations, aliases, qualifiers, functions, floats and tags of types.
        2 | 7..=FUNC | 16 | 18 => 0,
        // Integers, variables, tags of declarations.
        1 | 14 | 17 => 4,
        // An array.
        3 => 12,
        // Structs, unions, data sections, wide enumerations.
        4 | 5 | 15 | 19 => 12 * count,
        // Enumerations and prototypes.
        6 | FUNC_PROTO => 8 * count,
        other => bail!("BTF has a type of the unknown kind {other}"),
    })
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let four = bytes.get(at..at.saturating_add(4)).and_then(|b| b.try_into().ok());
    Ok(u32::from_le_bytes(four.context("BTF is cut off")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF with one function of so many parameters, after a struct of two members.
    fn btf(parameters: u32) -> Vec<u8> {
        let mut types = vec![1, 4 << 24 | 2, 8];
        types.extend([0; 6]);
        types.extend([0, FUNC_PROTO << 24 | parameters, 0]);
        types.resize(types.len() + 2 * parameters as usize, 0);
        types.extend([1, FUNC << 24, 2]);
        let strings = b"\0long\0\0";
        let len = 4 * types.len() as u32;
        let header = [MAGIC | 1 << 16, 24, 0, len, len, strings.len() as u32];
        header.into_iter().chain(types).flat_map(u32::to_le_bytes).chain(*strings).collect()
    }

    #[test]
    fn parameters_are_counted_by_function() {
        for count in [0, 5, 6] {
            assert_eq!(functions(&btf(count)).unwrap(), [("long".to_owned(), count)]);
        }
        let whole = btf(6);
        for len in 0..whole.len() {
            assert!(functions(&whole[..len]).is_err(), "cut after {len}");
        }
    }

    #[test]
    fn no_function_of_the_kept_objects_has_more_parameters_than_registers() {
        for object in [super::super::object(), super::super::next_object()] {
            let elf = std::fs::read(object).unwrap();
            let btf = strip::section(&elf, ".BTF").unwrap().unwrap();
            assert!(functions(&btf).unwrap().iter().any(|(name, _)| name == "from_pod"));
            check(&elf).unwrap();
        }
    }
}
