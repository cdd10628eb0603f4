//! RocksDB's compactions give way to requests.
//!
//! A compaction has time; a request has not. Where both want the same processors, the scheduler is told so.
//! RocksDB itself offers only the lowest priority of all (`LowerThreadPoolCPUPriority`, nice 19), with
//! which compactions stand still on a busy machine until RocksDB stops the writes.

use std::{fs, io};

use rustix::process::{Pid, setpriority_process};

/// The threads that compact; flushes, for which writes may have to wait, have others. Source: `BGThreadWrapper`
/// and `StartBGThreads` in threadpool_imp.cc 11.8.
const THREADS: &str = "rocksdb:low";
/// About a tenth of the weight of a thread that serves requests (`sched_prio_to_weight` of Linux).
const NICE: i32 = 10;

/// Lowers the priority of the threads of this process that compact; answers how many there are. RocksDB
/// starts them when it needs them first.
///
/// # Errors
/// When the system does not tell which threads there are, or does not let their priority be changed.
pub(crate) fn give_way() -> io::Result<usize> {
    let mut found = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        // Threads end at any time.
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else {
            continue;
        };
        let id = task.file_name().to_str().and_then(|id| id.parse().ok());
        let Some(id) = id.and_then(Pid::from_raw) else {
            continue;
        };
        if name.starts_with(THREADS) {
            setpriority_process(Some(id), NICE)?;
            found += 1;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_compact_give_way_and_no_others() {
        let (to_end, ended) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let wait = std::thread::Builder::new()
            .name(format!("{THREADS}7"))
            .spawn(move || {
                tell.send(rustix::thread::gettid()).unwrap();
                let _ = ended.recv();
            })
            .unwrap();
        let id = told.recv().unwrap();
        let own = rustix::thread::gettid();
        let before = rustix::process::getpriority_process(Some(own)).unwrap();
        assert!(give_way().unwrap() >= 1);
        let nice = |of| rustix::process::getpriority_process(Some(of)).unwrap();
        assert_eq!(nice(id), NICE);
        assert_eq!(nice(own), before);
        drop(to_end);
        wait.join().unwrap();
    }
}
