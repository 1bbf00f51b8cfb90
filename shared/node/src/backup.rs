//! One file that holds a node's state: written whole, read only when every byte of it is as it was written (OPS-7).
//!
//! ```text
//! "branchline backup 1\n"   the format's number in plain digits
//! u64 big-endian            length of the manifest
//! manifest                  MessagePack, see [`Manifest`]
//! 32 bytes                  blake3 of everything before
//! parts                     one after another, in the manifest's order
//! ```
//! The digests find damage. They are no signature: whoever holds the file holds the node's keys anyway, so it is written
//! for its owner's eyes only and never replaces another file.

use branchline_protocol::{
    hash::Hash,
    id::{NodeId, Role, TenantId},
    time::Millis,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Seek, Write},
    path::{Component, Path, PathBuf},
};

/// The format that this build writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// Bytes of the largest manifest: 16,384 parts with long names fit.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;

const MAGIC: &[u8] = b"branchline backup ";
/// Digits of a format's number that are looked at.
const DIGITS_MAX: usize = 9;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The build that wrote it.
    pub build: String,
    /// What kind of node it is of.
    pub role: Role,
    /// The node.
    pub node: NodeId,
    /// Its name, for people.
    pub name: String,
    /// The tenants in it.
    pub tenants: Vec<TenantId>,
    /// The server's term.
    pub term: u32,
    /// When it was made: the node's wall clock.
    pub made_at: Millis,
    /// Its files.
    pub parts: Vec<Part>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Where it lies below the state folder, with `/`.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its digest.
    pub hash: Hash,
}

/// Where a part's bytes come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// These.
    Bytes(Vec<u8>),
    /// A file that does not change meanwhile.
    File(PathBuf),
}

/// Why there is no backup, or why one is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BackupFault {
    /// A file or folder.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// There is something where the backup would be written.
    #[error("{0} exists; a backup never replaces a file")]
    Exists(String),
    /// Not the beginning of a backup.
    #[error("{0} is no backup")]
    NotABackup(String),
    /// A newer build wrote it.
    #[error("the backup has format {found}, this build reads up to {known}: use the build that wrote it")]
    NewerFormat {
        /// What it says.
        found: u32,
        /// [`FORMAT`].
        known: u32,
    },
    /// Bytes are missing, too many, or not as they were written.
    #[error("the backup is damaged: {0}")]
    Damaged(String),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BackupFault + '_ {
    move |source| BackupFault::Io { path: path.display().to_string(), source }
}

fn damaged(what: impl Into<String>) -> BackupFault {
    BackupFault::Damaged(what.into())
}

/// Writes a backup of these parts to a new file, mode 0600, and answers its manifest; `head.parts` is filled in. A crash
/// leaves the whole file or none of this name. Blocks.
///
/// # Errors
/// [`BackupFault::Exists`]; [`BackupFault::Io`]; [`BackupFault::Damaged`] if a source changed meanwhile.
pub fn write(out: &Path, head: Manifest, parts: Vec<(String, Source)>) -> Result<Manifest, BackupFault> {
    let mut manifest = Manifest { parts: Vec::new(), ..head };
    for (path, source) in &parts {
        let (bytes, hash) = match source {
            Source::Bytes(bytes) => (bytes.len() as u64, Hash::of(bytes)),
            Source::File(file) => {
                let opened = File::open(file).map_err(at(file))?;
                let bytes = opened.metadata().map_err(at(file))?.len();
                (bytes, Hash::of_reader(opened).map_err(at(file))?)
            }
        };
        manifest.parts.push(Part { path: path.clone(), bytes, hash });
    }
    if out.symlink_metadata().is_ok() {
        return Err(BackupFault::Exists(out.display().to_string()));
    }
    let part = beside(out, "part");
    let opened = create_private(&part).map_err(at(&part))?;
    let written = write_parts(&part, opened, &manifest, parts);
    // A link, unlike a rename, never takes another file's place.
    let placed = written.and_then(|()| match fs::hard_link(&part, out) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(BackupFault::Exists(out.display().to_string())),
        linked => linked.and_then(|()| sync_parent(out)).map_err(at(out)),
    });
    let removed = fs::remove_file(&part).map_err(at(&part));
    placed.and(removed).map(|()| manifest)
}

fn write_parts(
    file: &Path,
    mut out: File,
    manifest: &Manifest,
    parts: Vec<(String, Source)>,
) -> Result<(), BackupFault> {
    out.write_all(&header(manifest)).map_err(at(file))?;
    for ((_, source), part) in parts.into_iter().zip(&manifest.parts) {
        let copied = match source {
            Source::Bytes(bytes) => out.write_all(&bytes).map(|()| part.bytes),
            Source::File(from) => {
                let mut opened = File::open(&from).map_err(at(&from))?.take(part.bytes);
                io::copy(&mut opened, &mut out)
            }
        };
        if copied.map_err(at(file))? != part.bytes {
            return Err(damaged(format!("{} changed while it was read", part.path)));
        }
    }
    out.sync_all().map_err(at(file))?;
    drop(out);
    verify(file).map(|_| ())
}

fn header(manifest: &Manifest) -> Vec<u8> {
    let body = rmp_serde::to_vec_named(manifest).expect("a manifest is plain data");
    let mut head = [MAGIC, FORMAT.to_string().as_bytes(), b"\n"].concat();
    head.extend((body.len() as u64).to_be_bytes());
    head.extend(body);
    head.extend(Hash::of(&head).0);
    head
}

/// Reads the whole file and compares every byte with what the manifest says of it. Blocks.
///
/// # Errors
/// See [`BackupFault`].
pub fn verify(file: &Path) -> Result<Manifest, BackupFault> {
    let (manifest, mut reader, length) = open(file)?;
    check_paths(&manifest)?;
    let all = manifest.parts.iter().try_fold(reader.stream_position().map_err(at(file))?, |sum, part| {
        sum.checked_add(part.bytes).ok_or_else(|| damaged("its parts are longer than any file"))
    })?;
    if all != length {
        return Err(damaged(format!("it has {length} bytes and should have {all}")));
    }
    for part in &manifest.parts {
        let found = Hash::of_reader(reader.by_ref().take(part.bytes)).map_err(at(file))?;
        if found != part.hash {
            return Err(damaged(format!("{} is not as it was written", part.path)));
        }
    }
    Ok(manifest)
}

/// Writes the parts into a folder, which must not exist and is made with mode 0700; files get mode 0600. The file has to
/// be verified before: [`verify`]. What was written is compared again. Blocks.
///
/// # Errors
/// See [`BackupFault`]; the folder may hold some of the parts then.
pub fn extract(file: &Path, into: &Path) -> Result<Manifest, BackupFault> {
    let (manifest, mut reader, _) = open(file)?;
    check_paths(&manifest)?;
    make_private(into, false).map_err(at(into))?;
    let mut folders = vec![into.to_owned()];
    for part in &manifest.parts {
        let path = into.join(&part.path);
        if let Some(folder) = path.parent() {
            make_private(folder, true).map_err(at(folder))?;
            folders.push(folder.to_owned());
        }
        let mut out = create_private(&path).map_err(at(&path))?;
        io::copy(&mut reader.by_ref().take(part.bytes), &mut out).map_err(at(&path))?;
        out.sync_all().map_err(at(&path))?;
        let written = File::open(&path).and_then(Hash::of_reader).map_err(at(&path))?;
        if written != part.hash {
            return Err(damaged(format!("{} is not as it was written", part.path)));
        }
    }
    folders.iter().try_for_each(|folder| sync_folder(folder).map_err(at(folder)))?;
    Ok(manifest)
}

/// The manifest, the reader at the first part's first byte, and the file's length.
fn open(file: &Path) -> Result<(Manifest, BufReader<File>, u64), BackupFault> {
    let opened = File::open(file).map_err(at(file))?;
    let length = opened.metadata().map_err(at(file))?.len();
    let mut reader = BufReader::new(opened);
    let no_backup = || BackupFault::NotABackup(file.display().to_string());
    let cut = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it ends within its head"),
        _ => at(file)(e),
    };
    let mut magic = vec![0; MAGIC.len()];
    reader.read_exact(&mut magic).map_err(|_| no_backup())?;
    if magic != MAGIC {
        return Err(no_backup());
    }
    let mut digits = Vec::new();
    loop {
        let mut byte = [0];
        reader.read_exact(&mut byte).map_err(|_| no_backup())?;
        match byte[0] {
            b'\n' => break,
            digit if digit.is_ascii_digit() && digits.len() < DIGITS_MAX => digits.push(digit),
            _ => return Err(no_backup()),
        }
    }
    let found = String::from_utf8(digits).ok().and_then(|text| text.parse::<u32>().ok()).ok_or_else(no_backup)?;
    if found > FORMAT {
        return Err(BackupFault::NewerFormat { found, known: FORMAT });
    }
    if found == 0 {
        return Err(no_backup());
    }
    let mut size = [0; 8];
    reader.read_exact(&mut size).map_err(cut)?;
    let size = u64::from_be_bytes(size);
    if size > MANIFEST_BYTES_MAX {
        return Err(damaged(format!("its manifest has {size} bytes, at most {MANIFEST_BYTES_MAX} are allowed")));
    }
    reader.seek_relative(-(8 + 1 + found.to_string().len() as i64 + MAGIC.len() as i64)).map_err(at(file))?;
    let mut head = vec![0; MAGIC.len() + found.to_string().len() + 1 + 8 + size as usize];
    reader.read_exact(&mut head).map_err(cut)?;
    let mut digest = [0; 32];
    reader.read_exact(&mut digest).map_err(cut)?;
    if Hash(digest) != Hash::of(&head) {
        return Err(damaged("its manifest is not as it was written"));
    }
    let body = &head[head.len() - size as usize..];
    let manifest = rmp_serde::from_slice(body).map_err(|e| damaged(format!("its manifest: {e}")))?;
    Ok((manifest, reader, length))
}

/// A part lies below the folder, and no two are one file.
fn check_paths(manifest: &Manifest) -> Result<(), BackupFault> {
    let mut seen = std::collections::BTreeSet::new();
    for Part { path, .. } in &manifest.parts {
        let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if path.is_empty() || !plain || !seen.insert(path) {
            return Err(damaged(format!("{path:?} is no place below a state folder, or is there twice")));
        }
    }
    Ok(())
}

/// `file` with something appended to its name.
fn beside(file: &Path, what: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    PathBuf::from(name)
}

fn create_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path)
}

fn make_private(path: &Path, recursive: bool) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(recursive);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(path)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => sync_folder(folder),
        None => sync_folder(Path::new(".")),
    }
}

#[cfg(test)]
mod tests;
