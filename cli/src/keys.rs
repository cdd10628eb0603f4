//! `torc get`, `put`, `delete`, `ls`, `batch`.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use bytes::Bytes;
use serde_json::json;
use torc_client::{
    BATCH_OPERATIONS_MAX, Client, ClientConfig, ListOptions, ReadOptions, Routing, Text,
    WriteOptions, Written,
};

use crate::args::{BatchArgs, DataArgs, DeleteArgs, GetArgs, ListArgs, Output, PutArgs, WriteArgs};
use crate::exit::REFUSED;
use crate::output;

/// Greatest value that is read from a file or standard input: the greatest that a node can be set to.
const VALUE_BYTES_MAX: u64 = 64 << 20;
/// Longest line of a batch: a value in base64, and room for the rest.
const LINE_BYTES_MAX: u64 = 90 << 20;
/// Bytes of lines after which a batch is sent, though it could hold more of them.
const BATCH_BYTES: usize = 512 << 10;
/// Keys asked for at a time.
const PAGE: usize = 1_000;

pub(crate) async fn get(args: GetArgs) -> anyhow::Result<ExitCode> {
    let client = client(&args.data)?;
    let options = ReadOptions {
        r: args.r,
        deadline: args.data.deadline,
    };
    let read = client
        .get(&args.data.bucket, args.key.as_bytes(), &options)
        .await?;
    let Some(value) = read.value else {
        let key = args.key.to_string_lossy();
        writeln!(
            io::stderr(),
            "torc: there is no key `{key}` in bucket `{}`",
            args.data.bucket
        )?;
        return Ok(ExitCode::from(REFUSED));
    };
    match (args.output, args.file) {
        (_, Some(file)) => std::fs::write(&file, &value.bytes)
            .with_context(|| format!("cannot write {}", file.display()))?,
        (Output::Text, None) => output::raw(&value.bytes)?,
        (Output::Json, None) => {
            let text = Text::of(&value.bytes);
            output::json(&json!({
                "key": Text::of(args.key.as_bytes()).text,
                "value": text.text,
                "encoding": if text.is_base64 { "base64" } else { "utf-8" },
                "content_type": value.meta.content_type,
                "etag": value.meta.etag,
                "last_modified": value.meta.last_modified,
                "context": read.context,
            }))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn put(args: PutArgs) -> anyhow::Result<ExitCode> {
    let value = match (&args.file, &args.value) {
        (Some(file), _) => read_file(file)?,
        (None, Some(value)) if value != OsStr::new("-") => Bytes::copy_from_slice(value.as_bytes()),
        _ => read_stdin()?,
    };
    let client = client(&args.data)?;
    let options = WriteOptions {
        ttl: args.ttl,
        content_type: args.content_type,
        ..write_options(args.write, &args.data)
    };
    let written = client
        .put(&args.data.bucket, args.key.as_bytes(), value, &options)
        .await?;
    warn_superseded(&written, &args.key);
    if args.output == Output::Json {
        output::json(&json!({
            "key": Text::of(args.key.as_bytes()).text,
            "etag": written.etag,
            "context": written.context,
            "superseded": written.superseded,
        }))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn delete(args: DeleteArgs) -> anyhow::Result<ExitCode> {
    let client = client(&args.data)?;
    let options = write_options(args.write, &args.data);
    for key in &args.keys {
        let written = client
            .delete(&args.data.bucket, key.as_bytes(), &options)
            .await
            .with_context(|| format!("cannot delete `{}`", key.to_string_lossy()))?;
        warn_superseded(&written, key);
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let client = client(&args.data)?;
    let mut left = args.limit.unwrap_or(usize::MAX);
    let options = ListOptions {
        prefix: args.prefix,
        page: Some(left.clamp(1, PAGE)),
        cursor: None,
        deadline: args.data.deadline,
    };
    let mut pages = client.list(&args.data.bucket, options);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut is_first = true;
    if args.output == Output::Json {
        write!(out, "{{\"keys\":[")?;
    }
    while left > 0
        && let Some(page) = pages.next_page().await?
    {
        for key in page.keys.into_iter().take(left) {
            left -= 1;
            match args.output {
                Output::Json => {
                    let separator = if is_first { "" } else { "," };
                    write!(out, "{separator}\n{}", serde_json::to_string(&key)?)?;
                }
                Output::Text => {
                    let bytes = key
                        .key()
                        .bytes()
                        .context("a key in the list is no valid base64")?;
                    out.write_all(&bytes)?;
                    writeln!(out)?;
                }
            }
            is_first = false;
        }
        out.flush()?;
    }
    if args.output == Output::Json {
        writeln!(out, "]}}")?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Sends as many lines at a time as one request may have; stops at the first request that fails as a whole.
pub(crate) async fn batch(args: BatchArgs) -> anyhow::Result<ExitCode> {
    let client = client(&args.data)?;
    let mut input: Box<dyn BufRead> = match &args.file {
        Some(path) if path != Path::new("-") => {
            let file = std::fs::File::open(path)
                .with_context(|| format!("cannot open {}", path.display()))?;
            Box::new(BufReader::new(file))
        }
        _ => Box::new(BufReader::new(io::stdin())),
    };
    let mut done = 0;
    let mut refused = 0;
    loop {
        let lines = next_lines(&mut *input)?;
        if lines.is_empty() {
            break;
        }
        let replies = client
            .batch_lines(&args.data.bucket, &lines)
            .await
            .with_context(|| format!("stopped after {done} operations"))?;
        done += replies.len();
        refused += replies
            .iter()
            .filter(|reply| reply.status >= 400 && reply.status != 404)
            .count();
        let mut text = String::new();
        for reply in &replies {
            text.push_str(&serde_json::to_string(reply)?);
            text.push('\n');
        }
        output::raw(text.as_bytes())?;
    }
    if refused > 0 {
        anyhow::bail!(
            "{refused} of {done} operations were refused; their lines in the output say why"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn next_lines(input: &mut dyn BufRead) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut bytes = 0;
    while lines.len() < BATCH_OPERATIONS_MAX && bytes < BATCH_BYTES {
        let mut line = String::new();
        let read = input
            .take(LINE_BYTES_MAX)
            .read_line(&mut line)
            .context("cannot read the operations")?;
        if read == 0 {
            break;
        }
        bytes += read;
        let line = line.trim();
        if !line.is_empty() {
            lines.push(line.to_owned());
        }
    }
    Ok(lines)
}

/// One request needs no ring: any node serves any key.
fn client(args: &DataArgs) -> anyhow::Result<Client> {
    let mut config = ClientConfig::new(args.node.clone());
    config.routing = Routing::InTurn;
    if let Some(deadline) = args.deadline {
        config.deadline = deadline;
    }
    Ok(Client::new(config)?)
}

fn write_options(write: WriteArgs, data: &DataArgs) -> WriteOptions {
    WriteOptions {
        w: write.w,
        deadline: data.deadline,
        context: write.context,
        sloppy: write.sloppy.then_some(true),
        fsync: write.fsync,
        ..WriteOptions::default()
    }
}

fn warn_superseded(written: &Written, key: &OsStr) {
    if written.superseded {
        let key = key.to_string_lossy();
        // A closed standard error is no reason to fail: the write is done.
        let _ = writeln!(
            io::stderr(),
            "torc: `{key}` has a newer version already, which stays"
        );
    }
}

fn read_file(path: &Path) -> anyhow::Result<Bytes> {
    let file =
        std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    read_value(file).with_context(|| format!("cannot read {}", path.display()))
}

fn read_stdin() -> anyhow::Result<Bytes> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        writeln!(io::stderr(), "type the value, then Ctrl-D")?;
    }
    read_value(stdin.lock()).context("cannot read the value from standard input")
}

fn read_value(input: impl io::Read) -> anyhow::Result<Bytes> {
    let mut value = Vec::new();
    input.take(VALUE_BYTES_MAX + 1).read_to_end(&mut value)?;
    if value.len() as u64 > VALUE_BYTES_MAX {
        anyhow::bail!(
            "the value has more than {VALUE_BYTES_MAX} bytes, the most that a node can be set to"
        );
    }
    Ok(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_where_a_request_is_full() {
        let many = "{}\n".repeat(BATCH_OPERATIONS_MAX + 1);
        let mut input = many.as_bytes();
        assert_eq!(
            next_lines(&mut input).expect("lines").len(),
            BATCH_OPERATIONS_MAX
        );
        assert_eq!(next_lines(&mut input).expect("lines").len(), 1);
        assert!(next_lines(&mut input).expect("lines").is_empty());
        let long = format!("{}\n{}\n", "x".repeat(BATCH_BYTES), "y");
        let mut input = long.as_bytes();
        assert_eq!(next_lines(&mut input).expect("lines").len(), 1);
        let mut input = &b"\n  \n{}"[..];
        assert_eq!(next_lines(&mut input).expect("lines"), ["{}"]);
    }
}
