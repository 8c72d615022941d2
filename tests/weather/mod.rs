//! A network that misbehaves: one proxy a worker, between it and the coordinator.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its own part; a test's helper fails as its test does")]

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// What a proxy does to what passes it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// Each piece comes so much later.
    pub(crate) latency: Duration,
    /// Nothing of the worker's arrives.
    pub(crate) mute: bool,
    /// Nothing of the coordinator's arrives.
    pub(crate) deaf: bool,
    /// Pieces of some bytes with pauses between them, in both directions.
    pub(crate) slow: bool,
}

/// A proxy on a port of its own.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    weather: Arc<Mutex<Weather>>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    /// Connections that were made, and pieces that were held up.
    pub(crate) made: Arc<AtomicU64>,
    pub(crate) held: Arc<AtomicU64>,
}

impl Proxy {
    pub(crate) fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self {
            port: listener.local_addr().unwrap().port(),
            weather: Arc::default(),
            connections: Arc::default(),
            made: Arc::default(),
            held: Arc::default(),
        };
        let (weather, connections) = (Arc::clone(&this.weather), Arc::clone(&this.connections));
        let (made, held) = (Arc::clone(&this.made), Arc::clone(&this.held));
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                // A coordinator that is away refuses, and so does its proxy.
                let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                made.fetch_add(1, Ordering::Relaxed);
                near.set_nodelay(true).ok();
                far.set_nodelay(true).ok();
                let mut open = connections.lock().unwrap();
                open.retain(|stream: &TcpStream| stream.peer_addr().is_ok());
                open.extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                drop(open);
                for (from, to, up) in [(near.try_clone().unwrap(), far.try_clone().unwrap(), true), (far, near, false)] {
                    let (weather, held) = (Arc::clone(&weather), Arc::clone(&held));
                    thread::spawn(move || pass(from, to, up, &weather, &held));
                }
            }
        });
        this
    }

    pub(crate) fn set(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }

    /// Every connection ends at once.
    pub(crate) fn reset(&self) {
        for stream in self.connections.lock().unwrap().drain(..) {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, up: bool, weather: &Mutex<Weather>, held: &AtomicU64) {
    let mut buffer = [0; 16 << 10];
    loop {
        let size = if weather.lock().unwrap().slow { 64 } else { buffer.len() };
        let Ok(count @ 1..) = from.read(&mut buffer[..size]) else { break };
        let mut counted = false;
        loop {
            let now = *weather.lock().unwrap();
            let blocked = if up { now.mute } else { now.deaf };
            if !blocked {
                let pause = now.latency + if now.slow { Duration::from_millis(2) } else { Duration::ZERO };
                if !pause.is_zero() {
                    held.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(pause);
                }
                break;
            }
            if !std::mem::replace(&mut counted, true) {
                held.fetch_add(1, Ordering::Relaxed);
            }
            thread::sleep(Duration::from_millis(20));
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}
