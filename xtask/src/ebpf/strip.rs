//! Takes DWARF out of a BPF object: three quarters of its size, and nothing that loads it reads it.
//! BTF stays.

use anyhow::{Context, Result, bail};

const EHDR: usize = 64;
const SHDR: usize = 64;
const SYM: usize = 24;
const SHT_SYMTAB: u32 = 2;
const SHT_RELA: u32 = 4;
const SHT_NOBITS: u32 = 8;
const SHT_REL: u32 = 9;
const SHN_LORESERVE: u16 = 0xff00;

/// A section header and what it describes.
struct Section {
    name: String,
    header: Vec<u8>,
    data: Vec<u8>,
}

impl Section {
    fn kind(&self) -> u32 {
        get(&self.header, 4, 4) as u32
    }

    fn info(&self) -> usize {
        get(&self.header, 44, 4) as usize
    }

    fn link(&self) -> usize {
        get(&self.header, 40, 4) as usize
    }
}

/// The same relocatable ELF64 file (little-endian) without `.debug_*` sections and their relocations.
/// Symbols keep their numbers, so that relocations stay right; those of removed sections become
/// undefined and nameless.
pub fn without_debug_sections(elf: &[u8]) -> Result<Vec<u8>> {
    if !elf.starts_with(b"\x7fELF\x02\x01") || elf.len() < EHDR {
        bail!("not a little-endian ELF64 file");
    }
    let mut sections = read(elf)?;
    let doomed: Vec<bool> = sections
        .iter()
        .map(|s| {
            let relocates = matches!(s.kind(), SHT_REL | SHT_RELA);
            let subject = if relocates { sections.get(s.info()).map_or("", |t| &t.name) } else { &s.name };
            subject.starts_with(".debug_")
        })
        .collect();
    let mut number = vec![0usize; sections.len()];
    let mut next = 0;
    for (old, gone) in doomed.iter().enumerate() {
        number[old] = next;
        if !gone {
            next += 1;
        }
    }
    for section in &mut sections {
        let (link, info) = (section.link(), section.info());
        put(&mut section.header, 40, 4, *number.get(link).unwrap_or(&0) as u64);
        if matches!(section.kind(), SHT_REL | SHT_RELA) {
            put(&mut section.header, 44, 4, *number.get(info).unwrap_or(&0) as u64);
        }
        if section.kind() == SHT_SYMTAB {
            for symbol in section.data.chunks_exact_mut(SYM) {
                let of = get(symbol, 6, 2) as u16;
                if of == 0 || of >= SHN_LORESERVE {
                    continue;
                }
                if *doomed.get(usize::from(of)).context("a symbol of no section")? {
                    symbol.fill(0);
                } else {
                    put(symbol, 6, 2, number[usize::from(of)] as u64);
                }
            }
        }
    }
    let names = number[get(elf, 62, 2) as usize];
    let kept: Vec<Section> = sections.into_iter().zip(doomed).filter(|(_, gone)| !gone).map(|(s, _)| s).collect();
    Ok(write(&elf[..EHDR], kept, names))
}

/// What a section holds; nothing if there is none of this name.
pub fn section(elf: &[u8], name: &str) -> Result<Option<Vec<u8>>> {
    if elf.len() < EHDR {
        bail!("not an ELF64 file");
    }
    Ok(read(elf)?.into_iter().find(|s| s.name == name).map(|s| s.data))
}

fn read(elf: &[u8]) -> Result<Vec<Section>> {
    let (offset, count, names) = (get(elf, 40, 8) as usize, get(elf, 60, 2) as usize, get(elf, 62, 2) as usize);
    let mut sections = Vec::with_capacity(count);
    for index in 0..count {
        let at = offset.saturating_add(index * SHDR);
        let header = elf.get(at..at.saturating_add(SHDR)).context("section headers are cut off")?.to_vec();
        let (start, len) = (get(&header, 24, 8) as usize, get(&header, 32, 8) as usize);
        let kind = get(&header, 4, 4) as u32;
        let data = match kind {
            0 | SHT_NOBITS => Vec::new(),
            _ => elf.get(start..start.saturating_add(len)).context("a section is cut off")?.to_vec(),
        };
        sections.push(Section { name: String::new(), header, data });
    }
    let strings = sections.get(names).context("no section names")?.data.clone();
    for section in &mut sections {
        let start = get(&section.header, 0, 4) as usize;
        let name = strings.get(start..).context("a section's name is cut off")?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        section.name = String::from_utf8_lossy(&name[..end]).into_owned();
    }
    Ok(sections)
}

fn write(ehdr: &[u8], mut sections: Vec<Section>, names: usize) -> Vec<u8> {
    let mut out = ehdr.to_vec();
    for section in &mut sections {
        let align = (get(&section.header, 48, 8) as usize).max(1);
        out.resize(out.len().next_multiple_of(align), 0);
        if get(&section.header, 4, 4) != 0 {
            put(&mut section.header, 24, 8, out.len() as u64);
        }
        out.extend_from_slice(&section.data);
    }
    out.resize(out.len().next_multiple_of(8), 0);
    let offset = out.len() as u64;
    for section in &sections {
        out.extend_from_slice(&section.header);
    }
    put(&mut out, 40, 8, offset);
    put(&mut out, 60, 2, sections.len() as u64);
    put(&mut out, 62, 2, names as u64);
    out
}

fn get(bytes: &[u8], at: usize, size: usize) -> u64 {
    bytes[at..at + size].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn put(bytes: &mut [u8], at: usize, size: usize, value: u64) {
    bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kept_object_has_code_and_btf_but_no_dwarf_and_survives_again() {
        let object = std::fs::read(super::super::object()).unwrap();
        let names: Vec<String> = read(&object).unwrap().into_iter().map(|s| s.name).collect();
        assert!(names.iter().any(|n| n == "classifier"));
        assert!(names.iter().any(|n| n == ".BTF"));
        assert!(!names.iter().any(|n| n.contains("debug_")), "{names:?}");
        assert_eq!(without_debug_sections(&object).unwrap(), object);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(without_debug_sections(b"hello").is_err());
        let mut cut = b"\x7fELF\x02\x01".to_vec();
        cut.resize(EHDR, 0xff);
        assert!(without_debug_sections(&cut).is_err());
    }
}
