//! Hints in a Redis that several controllers share.
//!
//! A class is a sorted set of task ids (16 bytes, so that equal scores sort by id). Nothing here is truth: wiping it costs
//! a rebuild, and while it is away every call fails within [`link::ANSWER`], most at once. All keys begin with the prefix.
//! Redis 6.2 or later; not a cluster, unless the prefix has a hash tag.

mod link;
mod message;
#[cfg(test)]
pub(super) mod tests;

use std::sync::Arc;

use ado_proto::{Namespace, Offset, TaskId};
use async_trait::async_trait;
use redis::{Client, IntoConnectionInfo, Pipeline, ProtocolVersion};
use uuid::Uuid;

use link::{Link, Listener, Target};

use super::pushes::Pushes;
use super::wakes::{Gathered, News};
use super::{Class, Error, Hint, Queue, Wakes, Word};
use crate::env::Env;
use crate::tasks::Tasks;

/// Hints of one command: longer ones would hold up what others ask of the same Redis.
const CHUNK: usize = 1000;

/// Takes the first hints of a class; one that has no more is no longer among the classes.
const POP: &str = "\
    local popped = redis.call('ZPOPMIN', KEYS[1], ARGV[1]) \
    if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SREM', KEYS[2], ARGV[2]) end \
    return popped";

/// Which Redis, and where in it.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://[user:password@]host[:port][/db]`, `rediss://…` for TLS, `unix:///path`. A secret.
    pub url: String,
    /// What all keys and channels begin with: controllers of one store share it, stores do not.
    pub prefix: String,
}

impl std::fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisConfig").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// A queue in Redis, and wake-ups through it. One consumer, as a controller is.
pub struct Redis {
    link: Link,
    keys: Arc<Keys>,
    ears: Arc<Ears>,
    /// What the others are to be told.
    telling: Arc<Gathered>,
}

/// Names of what is kept and said.
struct Keys {
    prefix: String,
    classes: String,
    intact: String,
    pushed: String,
    grown: String,
}

/// What comes in by itself.
struct Ears {
    own: Uuid,
    keys: Arc<Keys>,
    pushes: Pushes,
    news: Gathered,
}

impl Redis {
    /// Connects, and stays connected. A Redis that is away now may come later; meanwhile every call fails.
    ///
    /// # Errors
    /// The URL is none of a Redis.
    pub async fn start(config: &RedisConfig, env: Env, tasks: &Tasks) -> Result<Self, Error> {
        let keys = Arc::new(Keys::new(&config.prefix));
        let own = env.uuid();
        let ears = Arc::new(Ears { own, keys: keys.clone(), pushes: Pushes::default(), news: Gathered::default() });
        let target = Target {
            client: client(&config.url)?,
            channels: vec![keys.pushed.clone(), keys.grown.clone()],
            proof: format!("{}proof", keys.prefix),
        };
        let link = Link::new();
        link.first(&target, &ears).await;
        tasks.spawn_until_stop("redis", link.clone().keep(target, ears.clone(), env));
        let telling = Arc::<Gathered>::default();
        tasks.spawn_until_stop("wake-ups", tell(link.clone(), telling.clone(), keys.grown.clone(), own));
        Ok(Self { link, keys, ears, telling })
    }
}

/// A client that says what is published on the connection that asks: RESP 3.
fn client(url: &str) -> Result<Client, Error> {
    // The library's words may repeat the URL, which may hold a password.
    let wrong = |_| Error("its URL is not of the form redis://host:port, rediss://host:port or unix:///path".into());
    let info = url.into_connection_info().map_err(wrong)?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Client::open(info.set_redis_settings(settings)).map_err(wrong)
}

/// Publishes what there is to tell: what comes while the last message is under way goes into the next one.
async fn tell(link: Link, telling: Arc<Gathered>, channel: String, own: Uuid) {
    loop {
        let news = telling.take().await;
        let mut publish = Pipeline::new();
        publish.cmd("PUBLISH").arg(&channel).arg(message::encode(own, news)).ignore();
        if link.ask::<()>(&publish).await.is_err() {
            // Whoever can be told when it is back is told that this was not.
            telling.merge(News { missed: true, ..News::default() });
            link.came_up().await;
        }
    }
}

impl Keys {
    fn new(prefix: &str) -> Self {
        let key = |name: &str| format!("{prefix}{name}");
        Self {
            prefix: prefix.into(),
            classes: key("classes"),
            intact: key("intact"),
            pushed: key("pushed"),
            grown: key("grown"),
        }
    }

    fn hints(&self, class: &[u8]) -> Vec<u8> {
        [self.prefix.as_bytes(), b"hints:", class].concat()
    }
}

/// A class as it is written: names may hold anything but what parts them.
fn write_class(class: &Class) -> Vec<u8> {
    [class.namespace.0.as_str(), &class.pool, &class.agent].join("\0").into_bytes()
}

fn read_class(bytes: &[u8]) -> Option<Class> {
    let mut parts = std::str::from_utf8(bytes).ok()?.split('\0').map(String::from);
    let class = Class { namespace: Namespace(parts.next()?), pool: parts.next()?, agent: parts.next()? };
    parts.next().is_none().then_some(class)
}

impl Listener for Ears {
    fn heard(&self, channel: &[u8], payload: &[u8]) {
        if channel == self.keys.pushed.as_bytes() {
            if payload != self.own.as_bytes() {
                self.pushes.add();
            }
        } else if let Some(news) = message::decode(self.own, payload) {
            self.news.merge(news);
        }
    }

    fn gap(&self) {
        self.pushes.add();
        self.news.merge(News { missed: true, ..News::default() });
    }
}

#[async_trait]
impl Queue for Redis {
    async fn push(&self, class: &Class, hints: &[Hint]) -> Result<(), Error> {
        if hints.is_empty() {
            return Ok(());
        }
        let class = write_class(class);
        let key = self.keys.hints(&class);
        // Not one transaction: what a transaction publishes to its own connection, Redis before 7.2 writes into the middle of
        // the transaction's answer. A class that is named after its hints is at worst named when they are gone already.
        let mut push = Pipeline::new();
        for chunk in hints.chunks(CHUNK) {
            let add = push.cmd("ZADD").arg(&key).arg("LT");
            for hint in chunk {
                add.arg(hint.score).arg(hint.task.0.as_bytes());
            }
            add.ignore();
        }
        push.cmd("SADD").arg(&self.keys.classes).arg(&class).ignore();
        push.cmd("PUBLISH").arg(&self.keys.pushed).arg(self.ears.own.as_bytes()).ignore();
        let pushed = self.link.ask::<()>(&push).await;
        // Also when it failed: who waits for hints then looks elsewhere.
        self.ears.pushes.add();
        pushed
    }

    async fn pop(&self, class: &Class, limit: usize) -> Result<Vec<Hint>, Error> {
        let class = write_class(class);
        let mut pop = Pipeline::new();
        pop.cmd("EVAL").arg(POP).arg(2).arg(self.keys.hints(&class)).arg(&self.keys.classes).arg(limit).arg(&class);
        let (popped,): (Vec<(Vec<u8>, f64)>,) = self.link.ask(&pop).await?;
        let hint = |(id, score): (Vec<u8>, f64)| {
            // Something that is no hint may be dropped: the sweep knows of every task.
            Some(Hint { score: score as i64, task: TaskId(Uuid::from_slice(&id).ok()?) })
        };
        Ok(popped.into_iter().filter_map(hint).collect())
    }

    async fn classes(&self) -> Result<Vec<Class>, Error> {
        let mut members = Pipeline::new();
        members.cmd("SMEMBERS").arg(&self.keys.classes);
        let (classes,): (Vec<Vec<u8>>,) = self.link.ask(&members).await?;
        let mut classes: Vec<_> = classes.iter().filter_map(|class| read_class(class)).collect();
        classes.sort();
        Ok(classes)
    }

    async fn len(&self, class: &Class) -> Result<usize, Error> {
        let mut count = Pipeline::new();
        count.cmd("ZCARD").arg(self.keys.hints(&write_class(class)));
        let (count,) = self.link.ask(&count).await?;
        Ok(count)
    }

    /// A server that was started anew, or another one in its place, is not intact even if it has read a copy of its data:
    /// the copy is older.
    async fn is_intact(&self) -> Result<bool, Error> {
        let mut get = Pipeline::new();
        get.cmd("GET").arg(&self.keys.intact);
        let (of,): (Option<String>,) = self.link.ask(&get).await?;
        Ok(of.is_some_and(|of| self.link.run().is_ok_and(|run| *run == *of)))
    }

    async fn mark_rebuilt(&self) -> Result<(), Error> {
        let mut set = Pipeline::new();
        set.cmd("SET").arg(&self.keys.intact).arg(&*self.link.run()?).ignore();
        self.link.ask(&set).await
    }

    async fn pushed(&self) {
        self.ears.pushes.next().await;
    }
}

#[async_trait]
impl Wakes for Redis {
    fn tell(&self, task: TaskId, next: Offset) {
        self.telling.add(task, next);
    }

    fn say(&self, word: Word) {
        self.telling.say(word);
    }

    async fn heard(&self) -> News {
        self.ears.news.take().await
    }

    fn flows(&self) -> bool {
        self.link.is_up()
    }
}
