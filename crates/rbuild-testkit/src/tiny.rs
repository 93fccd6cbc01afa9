//! An image of one static program, made without any package.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::scratch::Scratch;

/// The program of the image: `/bin/tool`.
const PROGRAM: &str = include_str!("../program/tool.rs");

/// Returns a root file system with the program of `program/tool.rs` as `/bin/tool`, as a tar.
///
/// # Errors
///
/// Fails with a message if the program cannot be compiled.
pub fn tiny_image() -> Result<Vec<u8>, String> {
    static TOOL: OnceLock<Result<Vec<u8>, String>> = OnceLock::new();
    let tool = TOOL.get_or_init(compile).clone()?;
    let mut tar = tar::Builder::new(Vec::new());
    let mut put = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        tar.append_data(&mut header, path, content).map_err(|e| e.to_string())
    };
    for (dir, mode) in [("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777)] {
        put(dir, tar::EntryType::Directory, mode, b"")?;
    }
    put("bin/tool", tar::EntryType::Regular, 0o755, &tool)?;
    put("etc/passwd", tar::EntryType::Regular, 0o644, b"root:x:0:0:root:/:\nweb:x:33:33:web:/:\n")?;
    tar.into_inner().map_err(|e| e.to_string())
}

/// Compiles the program with the compiler that belongs to the running cargo.
fn compile() -> Result<Vec<u8>, String> {
    let dir = Scratch::new();
    let (source, program) = (dir.join("tool.rs"), dir.join("tool"));
    std::fs::write(&source, PROGRAM).map_err(|e| e.to_string())?;
    let options = ["--edition=2024", "-Ctarget-feature=+crt-static", "-Copt-level=s", "-Cstrip=symbols"];
    let mut command = Command::new(rustc());
    command.args(options).arg("-o").arg(&program).arg(&source);
    let output = command.output().map_err(|e| format!("{}: {e}", rustc().display()))?;
    if !output.status.success() {
        return Err(format!("no static program could be compiled: {}", String::from_utf8_lossy(&output.stderr)));
    }
    std::fs::read(&program).map_err(|e| e.to_string())
}

fn rustc() -> PathBuf {
    let beside = |cargo| PathBuf::from(cargo).with_file_name("rustc");
    std::env::var_os("RUSTC")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("CARGO").map(beside))
        .unwrap_or("rustc".into())
}
