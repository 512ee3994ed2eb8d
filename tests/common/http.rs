//! Requests to a llama-server of the test's own on the loopback.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a server may take until it has loaded its model.
const START: Duration = Duration::from_secs(120);

/// A server, ended when it is dropped.
pub struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Starts one on a free port, with the arguments that `command` has, and waits until it is ready.
    pub fn start(command: &mut Command) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { child, port };
        let end = Instant::now() + START;
        while server.ask("GET", "/health", "").is_none_or(|(status, _)| status != 200) {
            assert!(Instant::now() < end, "{command:?} is not ready in time");
            std::thread::sleep(Duration::from_millis(100));
        }
        server
    }

    /// The JSON that it answers to a POST.
    pub fn post(&self, path: &str, body: &Value) -> Value {
        let (status, text) = self.ask("POST", path, &body.to_string()).expect("the server answers");
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Status and body of an answer, or nothing from who does not listen.
    fn ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let length = body.len();
        // By version 1.0 the answer comes in one piece and ends with the connection.
        let head = "Host: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n";
        write!(stream, "{method} {path} HTTP/1.0\r\n{head}Content-Length: {length}\r\n\r\n{body}").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split_whitespace().nth(1)?.parse().ok()?, body.to_owned()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
