//! What a disk may hold after a power cut: rebuilt from the journal of what a process changed.
//!
//! The model is what POSIX promises, and no file system in particular. An fsync of a file makes its content
//! durable as it was when the fsync was called, but not its name; an fsync of a folder makes durable which
//! names it holds. Everything later may have reached the disk or not: of a file's changes a prefix has; of
//! those after that, single pages have too, or pieces of them, or only the length (and then zeros are
//! read). Of the changes of a folder's names a prefix has. The dice decide, so each cut is another one.
//!
//! Sources: Pillai et al., "All file systems are not created equal" (2014), for what is allowed to happen.

mod journal;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use journal::{Change, Entry, read};

use crate::workload::Random;

const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// A file or folder of the model, whatever it is called.
type Object = usize;

/// A disk: what its objects hold for certain, and what was changed since.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    files: Vec<File>,
    folders: BTreeMap<String, Folder>,
    /// The object that an inode number stands for now.
    inodes: BTreeMap<u64, Object>,
}

#[derive(Debug, Clone, Default)]
struct File {
    synced: Vec<u8>,
    pending: Vec<(u64, Content)>,
}

#[derive(Debug, Clone)]
enum Content {
    Write { offset: usize, data: Vec<u8> },
    Length(usize),
}

#[derive(Debug, Clone, Default)]
struct Folder {
    synced: Names,
    pending: Vec<(u64, Naming)>,
}

type Names = BTreeMap<String, Named>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    File(Object),
    Folder,
}

#[derive(Debug, Clone)]
enum Naming {
    Set(String, Named),
    Remove(String),
}

/// What a cut did, for the report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Changes of contents that did not reach the disk.
    pub contents: u64,
    /// Writes of which a piece did.
    pub torn: u64,
    /// Changes of names that did not reach the disk.
    pub names: u64,
}

impl Lost {
    /// Adds another cut's.
    pub fn add(&mut self, other: Self) {
        self.contents += other.contents;
        self.torn += other.torn;
        self.names += other.names;
    }
}

impl Disk {
    /// The disk that holds what is in `root` now, all of it durable.
    ///
    /// # Errors
    /// When something in there cannot be read.
    pub fn of(root: &Path) -> io::Result<Self> {
        let mut disk = Self::default();
        disk.take_in(root, "")?;
        Ok(disk)
    }

    fn take_in(&mut self, root: &Path, folder: &str) -> io::Result<()> {
        self.folders.insert(folder.to_owned(), Folder::default());
        for found in fs::read_dir(within(root, folder))? {
            let found = found?;
            let name = found.file_name().to_string_lossy().into_owned();
            let named = if found.file_type()?.is_dir() {
                self.take_in(root, &format!("{folder}/{name}"))?;
                Named::Folder
            } else {
                let object = self.new_file(fs::read(found.path())?);
                self.inodes
                    .insert(std::os::unix::fs::DirEntryExt::ino(&found), object);
                Named::File(object)
            };
            self.folder(folder).synced.insert(name, named);
        }
        Ok(())
    }

    fn new_file(&mut self, synced: Vec<u8>) -> Object {
        self.files.push(File {
            synced,
            pending: Vec::new(),
        });
        self.files.len() - 1
    }

    fn folder(&mut self, path: &str) -> &mut Folder {
        self.folders.entry(path.to_owned()).or_default()
    }

    /// Follows the journal. Panics where it speaks of something that never was: then the shim has missed
    /// a change, and what follows from the journal would be worth nothing.
    pub fn follow(&mut self, journal: &[Entry]) {
        for entry in journal {
            self.follow_one(entry);
        }
    }

    fn follow_one(
        &mut self,
        Entry {
            number,
            inode,
            change,
        }: &Entry,
    ) {
        match change {
            Change::Create { path } => {
                let object = self.new_file(Vec::new());
                self.inodes.insert(*inode, object);
                self.name(*number, path, Some(Named::File(object)));
            }
            Change::Write { offset, data } => {
                let (offset, data) = (*offset as usize, data.clone());
                self.file(*inode)
                    .pending
                    .push((*number, Content::Write { offset, data }));
            }
            Change::Truncate { len } => {
                let length = Content::Length(*len as usize);
                self.file(*inode).pending.push((*number, length));
            }
            Change::SyncFile => {
                let file = self.file(*inode);
                let covered = file
                    .pending
                    .iter()
                    .take_while(|(at, _)| at <= number)
                    .count();
                for (_, content) in file.pending.drain(..covered) {
                    content.apply(&mut file.synced);
                }
            }
            Change::SyncFolder { path } => {
                let folder = self.folder(path);
                let covered = folder
                    .pending
                    .iter()
                    .take_while(|(at, _)| at <= number)
                    .count();
                for (_, naming) in folder.pending.drain(..covered) {
                    naming.apply(&mut folder.synced);
                }
            }
            Change::Rename { from, to } => {
                let named = self.named(from);
                if named == Named::Folder {
                    let moved = self.folders.remove(from).unwrap_or_default();
                    self.folders.insert(to.clone(), moved);
                }
                self.name(*number, to, Some(named));
                self.name(*number, from, None);
            }
            Change::Link { from, to } => {
                let named = self.named(from);
                self.name(*number, to, Some(named));
            }
            Change::Unlink { path } | Change::RemoveFolder { path } => {
                self.name(*number, path, None);
            }
            Change::MakeFolder { path } => {
                self.folders.insert(path.clone(), Folder::default());
                self.name(*number, path, Some(Named::Folder));
            }
        }
    }

    fn file(&mut self, inode: u64) -> &mut File {
        let object = self.inodes.get(&inode);
        let object = object
            .unwrap_or_else(|| panic!("the journal changes inode {inode}, which it never opened"));
        &mut self.files[*object]
    }

    fn named(&self, path: &str) -> Named {
        let (folder, name) = split(path);
        let names = self
            .folders
            .get(folder)
            .map(Folder::now)
            .unwrap_or_default();
        *names
            .get(name)
            .unwrap_or_else(|| panic!("the journal moves {path}, which it never made"))
    }

    fn name(&mut self, number: u64, path: &str, named: Option<Named>) {
        let (folder, name) = split(path);
        let naming = match named {
            Some(named) => Naming::Set(name.to_owned(), named),
            None => Naming::Remove(name.to_owned()),
        };
        self.folder(folder).pending.push((number, naming));
    }

    /// Everything has reached the disk, as when a process is killed and the machine goes on.
    pub fn settle(&mut self) {
        for file in &mut self.files {
            for (_, content) in file.pending.drain(..) {
                content.apply(&mut file.synced);
            }
        }
        for folder in self.folders.values_mut() {
            for (_, naming) in folder.pending.drain(..) {
                naming.apply(&mut folder.synced);
            }
        }
    }

    /// The power fails: of what is not durable, some has reached the disk.
    pub fn cut(&mut self, random: &mut Random) -> Lost {
        let mut lost = Lost::default();
        for file in &mut self.files {
            lost.add(file.cut(random));
        }
        for folder in self.folders.values_mut() {
            let kept = random.below(folder.pending.len() + 1);
            lost.names += (folder.pending.len() - kept) as u64;
            for (_, naming) in folder.pending.drain(..).take(kept) {
                naming.apply(&mut folder.synced);
            }
        }
        lost
    }

    /// Writes what is durable into `root`, which must not exist yet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_to(&self, root: &Path) -> io::Result<()> {
        self.write_folder(root, "")
    }

    fn write_folder(&self, root: &Path, folder: &str) -> io::Result<()> {
        let path = within(root, folder);
        fs::create_dir(&path)?;
        let Some(known) = self.folders.get(folder) else {
            return Ok(());
        };
        for (name, named) in &known.synced {
            match named {
                Named::File(object) => fs::write(path.join(name), &self.files[*object].synced)?,
                Named::Folder => self.write_folder(root, &format!("{folder}/{name}"))?,
            }
        }
        Ok(())
    }

    /// Where this disk (settled) and what is in `root` differ, as sentences; none if the journal tells all.
    ///
    /// # Errors
    /// When something in there cannot be read.
    pub fn differences(&self, root: &Path) -> io::Result<Vec<String>> {
        let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());
        self.list("", &mut ours);
        let real = Self::of(root)?;
        real.list("", &mut theirs);
        let mut found = Vec::new();
        for (path, bytes) in &ours {
            match theirs.get(path) {
                None => found.push(format!("{path} is in the journal alone")),
                Some(real) if real != bytes => {
                    let at = real.iter().zip(bytes).take_while(|(a, b)| a == b).count();
                    let (here, there) = (bytes.len(), real.len());
                    found.push(format!("{path} differs from byte {at} on; {here} bytes in the journal, {there} on disk"));
                }
                Some(_) => {}
            }
        }
        let alone = theirs.keys().filter(|path| !ours.contains_key(*path));
        found.extend(alone.map(|path| format!("{path} is on disk alone")));
        Ok(found)
    }

    fn list(&self, folder: &str, into: &mut BTreeMap<String, Vec<u8>>) {
        let Some(known) = self.folders.get(folder) else {
            return;
        };
        for (name, named) in &known.synced {
            let path = format!("{folder}/{name}");
            match named {
                Named::File(object) => {
                    into.insert(path, self.files[*object].synced.clone());
                }
                Named::Folder => self.list(&path, into),
            }
        }
    }
}

impl Folder {
    fn now(&self) -> Names {
        let mut names = self.synced.clone();
        for (_, naming) in &self.pending {
            naming.clone().apply(&mut names);
        }
        names
    }
}

impl Naming {
    fn apply(self, names: &mut Names) {
        match self {
            Self::Set(name, named) => {
                names.insert(name, named);
            }
            Self::Remove(name) => {
                names.remove(&name);
            }
        }
    }
}

impl Content {
    fn apply(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => write_at(bytes, offset, &data),
            Self::Length(len) => bytes.resize(len, 0),
        }
    }
}

fn write_at(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

impl File {
    fn cut(&mut self, random: &mut Random) -> Lost {
        let mut lost = Lost::default();
        let kept = random.below(self.pending.len() + 1);
        let mut pending = std::mem::take(&mut self.pending).into_iter();
        for (_, content) in pending.by_ref().take(kept) {
            content.apply(&mut self.synced);
        }
        // Half of the cuts are clean; in the others single pages have made it out of turn.
        let untidy = random.below(2) == 0;
        for (_, content) in pending {
            lost.contents += 1;
            if !untidy {
                continue;
            }
            match content {
                Content::Write { offset, data } => {
                    lost.torn += u64::from(self.keep_pieces(offset, &data, random));
                }
                // Only the length, not the data: zeros are read.
                Content::Length(len) if len > self.synced.len() && random.below(2) == 0 => {
                    self.synced.resize(len, 0);
                }
                Content::Length(_) => {}
            }
        }
        lost
    }

    /// Keeps some pages of a write, the last one perhaps in part, or its length alone.
    fn keep_pieces(&mut self, offset: usize, data: &[u8], random: &mut Random) -> bool {
        let mut kept = false;
        let mut start = 0;
        while start < data.len() {
            let end = ((offset + start) / PAGE + 1) * PAGE - offset;
            let page = &data[start..end.min(data.len())];
            match random.below(6) {
                0 => {
                    write_at(&mut self.synced, offset + start, page);
                    kept = true;
                }
                1 => {
                    let sectors = random.below(PAGE / SECTOR) * SECTOR;
                    write_at(
                        &mut self.synced,
                        offset + start,
                        &page[..sectors.min(page.len())],
                    );
                    kept |= sectors > 0;
                }
                2 if self.synced.len() < offset + start + page.len() => {
                    self.synced.resize(offset + start + page.len(), 0);
                    kept = true;
                }
                _ => {}
            }
            start += page.len();
        }
        kept
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn within(root: &Path, folder: &str) -> PathBuf {
    root.join(folder.trim_start_matches('/'))
}

#[cfg(test)]
mod tests;
