//! A real browser without a window: headless Chromium, told what to do through its DevTools protocol.
//!
//! It clicks and types as a person does (events of mouse and keyboard, not calls into the page), and notes
//! what would go unseen: errors of scripts, refusals of the page's policy, requests to other hosts. Each
//! wait has a deadline; the browser ends with the test.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

use crate::{http, process, wait};

/// How long a browser may take to start, and a page to show something: other tests share the machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where Debian and others put it; `TORC_CHROMIUM` names another one.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];

/// A browser with one page.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    page: WebSocket<TcpStream>,
    next: u64,
    complaints: Vec<String>,
    requests: Vec<String>,
    pictures: PathBuf,
    profile: TempDir,
}

/// A condition of the console's page: whether the result that is shown holds a text.
pub fn result_says(text: &str) -> String {
    format!(
        "document.querySelector('#result').innerText.includes({})",
        json!(text)
    )
}

fn program() -> PathBuf {
    if let Some(path) = env::var_os("TORC_CHROMIUM") {
        return path.into();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).find_map(|folder| {
        let mut candidates = NAMES.iter().map(|name| folder.join(name));
        candidates.find(|candidate| candidate.is_file())
    });
    found.unwrap_or_else(|| {
        panic!("no Chromium on the path: scripts/services.sh installs it, TORC_CHROMIUM names one")
    })
}

impl Browser {
    /// Starts it with an empty page.
    pub fn start() -> Self {
        let profile = TempDir::with_prefix("torc-browser-")
            .unwrap_or_else(|error| panic!("make a folder for the browser: {error}"));
        let mut command = process::bound(&program());
        // A group of its own, so that its helpers end with it.
        command.process_group(0);
        command
            .args([
                "--headless=new",
                // Tests run as root in containers, where its sandbox cannot be set up; it sees our pages only.
                "--no-sandbox",
                "--no-zygote",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                "--force-color-profile=srgb",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = process::spawn(command);
        let address = devtools(profile.path());
        let page = attach(address);
        let mut browser = Self {
            child,
            page,
            next: 0,
            complaints: Vec::new(),
            requests: Vec::new(),
            pictures: PathBuf::from("."),
            profile,
        };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// One command of the protocol; its result.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.next += 1;
        let id = self.next;
        let text = json!({"id": id, "method": method, "params": parameters}).to_string();
        self.page
            .send(Message::text(text))
            .unwrap_or_else(|error| panic!("{method}: {error}"));
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let Some(message) = self.receive() else {
                continue;
            };
            if message["id"] != id {
                self.note(&message);
                continue;
            }
            assert!(message.get("error").is_none(), "{method}: {message}");
            return message["result"].clone();
        }
        panic!("the browser did not answer {method} within {PATIENCE:?}")
    }

    /// The next message; `None` when none came for a moment.
    fn receive(&mut self) -> Option<Value> {
        match self.page.read() {
            Ok(Message::Text(text)) => serde_json::from_str(text.as_str()).ok(),
            Ok(_) => None,
            Err(tungstenite::Error::Io(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                None
            }
            Err(error) => panic!("the browser is gone: {error}"),
        }
    }

    fn note(&mut self, event: &Value) {
        let parameters = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => {
                let thrown = &parameters["exceptionDetails"];
                self.complaints.push(format!("exception: {thrown}"));
            }
            // A failed request is the page's business, and may be what is tested.
            Some("Log.entryAdded")
                if parameters["entry"]["level"] == "error"
                    && parameters["entry"]["source"] != "network" =>
            {
                let entry = &parameters["entry"];
                self.complaints.push(format!("log: {entry}"));
            }
            Some("Network.requestWillBeSent") => {
                let url = parameters["request"]["url"].as_str().unwrap_or_default();
                self.requests.push(url.to_owned());
            }
            _ => {}
        }
    }

    /// Opens an address and waits until it is loaded.
    pub fn open(&mut self, url: &str) {
        let answer = self.call("Page.navigate", &json!({ "url": url }));
        assert!(answer.get("errorText").is_none(), "{url}: {answer}");
        self.until(
            "the page",
            "document.readyState === 'complete' && location.href !== 'about:blank'",
        );
    }

    /// What an expression comes to; promises are awaited.
    pub fn eval(&mut self, expression: &str) -> Value {
        let parameters =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", &parameters);
        assert!(
            answer.get("exceptionDetails").is_none(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub fn until(&mut self, what: &str, expression: &str) {
        let looked = wait::try_until(what, PATIENCE, || {
            let parameters = json!({"expression": expression, "returnByValue": true});
            let answer = self.call("Runtime.evaluate", &parameters);
            match &answer["result"]["value"] {
                Value::Bool(true) => Ok(()),
                _ => Err(answer.to_string()),
            }
        });
        if let Err(error) = looked {
            let text = self.eval("document.body.innerText");
            panic!(
                "{error}\nthe page: {text}\ncomplaints: {:?}",
                self.complaints
            );
        }
    }

    /// The text of the first element that a selector finds.
    pub fn text(&mut self, selector: &str) -> String {
        let found = self.eval(&format!(
            "document.querySelector({})?.innerText",
            json!(selector)
        ));
        found.as_str().unwrap_or_default().to_owned()
    }

    /// Clicks on the middle of the first element that a selector finds.
    pub fn click(&mut self, selector: &str) {
        let enabled = format!(
            "document.querySelector({})?.disabled === false || document.querySelector({0})?.disabled === undefined && document.querySelector({0}) !== null",
            json!(selector)
        );
        self.until(&format!("{selector} to click on"), &enabled);
        let middle = self.eval(&format!(
            "(() => {{ const e = document.querySelector({}); e.scrollIntoView({{block: 'center', behavior: 'instant'}}); \
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()",
            json!(selector)
        ));
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({"type": kind, "x": middle[0], "y": middle[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", &event);
        }
    }

    /// Types text where the focus is.
    pub fn write(&mut self, text: &str) {
        self.call("Input.insertText", &json!({ "text": text }));
    }

    /// Replaces what stands in a field.
    pub fn fill(&mut self, selector: &str, text: &str) {
        self.click(selector);
        self.eval(&format!(
            "document.querySelector({}).select()",
            json!(selector)
        ));
        if text.is_empty() {
            self.press("Delete", 46, 0);
        } else {
            self.write(text);
        }
    }

    /// Presses a key by its name and its old key code; `modifiers`: 1 Alt, 2 Ctrl, 4 Meta, 8 Shift.
    pub fn press(&mut self, key: &str, code: u32, modifiers: u32) {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code,
                               "modifiers": modifiers, "text": if kind == "keyDown" { text } else { "" }});
            self.call("Input.dispatchKeyEvent", &event);
        }
    }

    /// Gives the page another size, and light or dark colours.
    pub fn look(&mut self, (width, height): (u32, u32), scheme: &str) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &feature);
    }

    /// Where pictures are kept from now on.
    pub fn keep_pictures_in(&mut self, folder: PathBuf) {
        self.pictures = folder;
    }

    /// Keeps a picture of the whole page as a PNG file of that name.
    pub fn picture(&mut self, name: &str) {
        let file = &self.pictures.join(name);
        let answer = self.call(
            "Page.captureScreenshot",
            &json!({"format": "png", "captureBeyondViewport": true}),
        );
        let text = answer["data"].as_str().unwrap_or_default();
        let bytes = STANDARD
            .decode(text)
            .unwrap_or_else(|error| panic!("a screenshot that is no base64: {error}"));
        let written = file
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(file, bytes));
        written.unwrap_or_else(|error| panic!("write {}: {error}", file.display()));
        eprintln!("screenshot: {}", file.display());
    }

    /// Errors of scripts, and what the page's policy refused, so far.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Addresses that were asked for, so far.
    pub fn requests(&self) -> &[String] {
        &self.requests
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended already.
        if let Ok(group) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.child.wait();
        // A helper that is still ending may yet write into the profile; then it is removed again.
        let profile = self.profile.path().to_owned();
        let _ = wait::try_until("the end of the browser", Duration::from_secs(5), || {
            let removed = fs::remove_dir_all(&profile);
            if profile.exists() {
                removed.map_err(|error| error.to_string())
            } else {
                Ok(())
            }
        });
    }
}

/// Where a browser that has just been started takes commands: it writes its port into its profile.
fn devtools(profile: &Path) -> SocketAddr {
    let file = profile.join("DevToolsActivePort");
    wait::until("the browser to start", PATIENCE, || {
        let text = fs::read_to_string(&file).map_err(|error| error.to_string())?;
        let port = text.lines().next().and_then(|line| line.parse().ok());
        port.map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
            .ok_or_else(|| format!("{text:?} in {}", file.display()))
    })
}

/// Connects to the page that the browser has opened.
fn attach(address: SocketAddr) -> WebSocket<TcpStream> {
    let url = wait::until("the browser's page", PATIENCE, || {
        let pages = list(address)?;
        let mut pages = pages.as_array().into_iter().flatten();
        let page = pages.find(|page| page["type"] == "page");
        let url = page.and_then(|page| page["webSocketDebuggerUrl"].as_str());
        url.map(str::to_owned).ok_or_else(|| "no page".to_owned())
    });
    let connected = TcpStream::connect(address).and_then(|stream| {
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    });
    let stream = connected.unwrap_or_else(|error| panic!("connect to the browser: {error}"));
    // Screenshots are large; the default limits are larger.
    let mut handshake = tungstenite::client(url.as_str(), stream);
    loop {
        match handshake {
            Ok((socket, _)) => return socket,
            Err(tungstenite::HandshakeError::Interrupted(half)) => handshake = half.handshake(),
            Err(error) => panic!("{url}: {error}"),
        }
    }
}

fn list(address: SocketAddr) -> Result<Value, String> {
    let request = http::Request::get("/json/list").header("host", &address.to_string());
    let asked = http::Connection::open(address, PATIENCE).and_then(|mut connection| {
        connection.send(&request.encode())?;
        connection.receive(false, PATIENCE)
    });
    let answer = asked.map_err(|error| error.to_string())?;
    serde_json::from_slice(&answer.body).map_err(|error| format!("{error}: {}", answer.text()))
}
