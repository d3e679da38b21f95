//! Containers as their users see and change them; how they run is in `runs`.

use edd_events::envelope::Cause;
use edd_store::{Executor, Transaction, query};

use super::{IngressRule, Store, now_ms, runs::set_run_cause};
use crate::{
    events::outgoing,
    input::{ContainerId, PortPair},
};

/// Draws of an id before giving up: with a million containers one draw in two
/// million hits a taken one.
const ID_DRAWS: usize = 8;

/// What a container does.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It cannot run, or stopped by itself.
    Failed,
    /// It will run soon.
    Pending,
    /// It runs.
    Running,
    /// Its user stopped it.
    Stopped,
}

impl TryFrom<String> for Status {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "failed" => Ok(Self::Failed),
            "pending" => Ok(Self::Pending),
            "running" => Ok(Self::Running),
            "stopped" => Ok(Self::Stopped),
            _ => Err(format!("{text:?} is no status")),
        }
    }
}

/// A row.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Container {
    /// A DNS label.
    pub id: String,
    /// The owner.
    pub user_id: i64,
    /// The owner's name when it was created.
    pub owner_username: String,
    /// What its user calls it.
    pub name: String,
    /// What it runs.
    pub image: String,
    /// Memory, in MiB.
    pub memory_mb: i32,
    /// Storage, in GiB.
    pub storage_gb: i32,
    /// A size by name.
    pub instance_type: String,
    /// What it does.
    #[sqlx(try_from = "String")]
    pub status: Status,
    /// Why it failed.
    pub failure: Option<String>,
    /// Its address, of the last start.
    pub external_ip: Option<String>,
    /// Its SSH server's public key line, of the last start.
    pub ssh_host_key: Option<String>,
    /// Whether SSH to it is allowed.
    pub ssh_enabled: bool,
    /// Whether its public HTTPS port is open.
    pub https_enabled: bool,
    /// Counts the starts asked for.
    pub run: i64,
    /// Whether others were last told that it runs.
    pub announced: bool,
    /// Of its events; grows with each.
    pub version: i64,
    /// Unix time, in milliseconds.
    pub created_at: i64,
    /// Unix time, in milliseconds.
    pub started_at: Option<i64>,
    /// Unix time, in milliseconds.
    pub stopped_at: Option<i64>,
}

/// A container to be.
#[derive(Clone, Debug)]
pub struct NewContainer {
    /// The owner.
    pub user_id: i64,
    /// The owner's name.
    pub owner_username: String,
    /// What its user calls it.
    pub name: String,
    /// What it runs.
    pub image: String,
    /// Memory, in MiB.
    pub memory_mb: i32,
    /// Storage, in GiB.
    pub storage_gb: i32,
    /// A size by name.
    pub instance_type: String,
    /// Whether SSH to it is allowed from the start.
    pub ssh_enabled: bool,
    /// Keys of the owner, by id.
    pub ssh_key_ids: Vec<i64>,
    /// Wanted ingress rules, each port once.
    pub ingress: Vec<PortPair>,
}

/// How a creation ended.
#[derive(Clone, Debug)]
pub enum Creation {
    /// It is there, pending.
    Created(Box<Container>),
    /// The owner was deleted meanwhile.
    OwnerGone,
    /// The owner has as many as he may.
    TooMany,
    /// Not a key of this owner.
    UnknownKey(i64),
}

/// A switch of a container.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Toggle {
    /// The public HTTPS port.
    Https(bool),
    /// SSH.
    Ssh(bool),
}

impl Store {
    /// Creates a container with its wanted rules: row, `created`, one `requested`
    /// per rule and `ssh_toggled` if SSH is on, all in one transaction.
    pub async fn create_container(
        &self,
        new: &NewContainer,
        containers_max: u32,
        cause: &Cause,
    ) -> sqlx::Result<Creation> {
        let mut tx = self.database.begin().await?;
        if is_deleted(&mut tx, new.user_id).await? {
            return Ok(Creation::OwnerGone);
        }
        let owned: i64 = query("SELECT COUNT(*) FROM containers WHERE user_id = $1")
            .bind(new.user_id)
            .value(&mut tx)
            .await?;
        if owned >= i64::from(containers_max) {
            return Ok(Creation::TooMany);
        }
        let id = free_id(&mut tx).await?;
        let mut container = Container {
            id: id.to_string(),
            user_id: new.user_id,
            owner_username: new.owner_username.clone(),
            name: new.name.clone(),
            image: new.image.clone(),
            memory_mb: new.memory_mb,
            storage_gb: new.storage_gb,
            instance_type: new.instance_type.clone(),
            status: Status::Pending,
            failure: None,
            external_ip: None,
            ssh_host_key: None,
            ssh_enabled: new.ssh_enabled,
            https_enabled: true,
            run: 1,
            announced: false,
            version: 1,
            created_at: now_ms(),
            started_at: None,
            stopped_at: None,
        };
        insert(&mut tx, &container).await?;
        set_run_cause(&mut tx, &container.id, cause).await?;
        for key in &new.ssh_key_ids {
            if !add_key(&mut tx, &container, *key).await? {
                return Ok(Creation::UnknownKey(*key));
            }
        }
        let created = outgoing::container_created(&container, cause)?;
        self.database.announce(&mut tx, &created).await?;
        for pair in &new.ingress {
            container.version = bump(&mut tx, &container.id).await?;
            let rule = IngressRule::wanted(*pair, container.version);
            self.insert_rule(&mut tx, &container.id, &rule, cause)
                .await?;
        }
        if container.ssh_enabled {
            container.version = bump(&mut tx, &container.id).await?;
            let toggled = outgoing::ssh_toggled(&container, cause)?;
            self.database.announce(&mut tx, &toggled).await?;
        }
        tx.commit().await?;
        Ok(Creation::Created(Box::new(container)))
    }

    /// A container of this user.
    pub async fn container(&self, user_id: i64, id: &str) -> sqlx::Result<Option<Container>> {
        query("SELECT * FROM containers WHERE id = $1 AND user_id = $2")
            .bind(id)
            .bind(user_id)
            .optional(self.database.sql())
            .await
    }

    /// All containers of this user, oldest first.
    pub async fn containers_of(&self, user_id: i64) -> sqlx::Result<Vec<Container>> {
        query("SELECT * FROM containers WHERE user_id = $1 ORDER BY created_at, id")
            .bind(user_id)
            .all(self.database.sql())
            .await
    }

    /// The keys chosen for a container.
    pub async fn keys_of_container(&self, id: &str) -> sqlx::Result<Vec<i64>> {
        query("SELECT key_id FROM container_keys WHERE container_id = $1 ORDER BY key_id")
            .bind(id)
            .values(self.database.sql())
            .await
    }

    /// Sets a switch; says so only if it changes. `None` for no such container.
    pub async fn toggle(
        &self,
        user_id: i64,
        id: &str,
        toggle: Toggle,
        cause: &Cause,
    ) -> sqlx::Result<Option<Container>> {
        let mut tx = self.database.begin().await?;
        let Some(mut container) = owned(&mut tx, user_id, id).await? else {
            return Ok(None);
        };
        let (flag, wanted) = match toggle {
            Toggle::Https(wanted) => (&mut container.https_enabled, wanted),
            Toggle::Ssh(wanted) => (&mut container.ssh_enabled, wanted),
        };
        if *flag == wanted {
            return Ok(Some(container));
        }
        *flag = wanted;
        container.version = bump(&mut tx, id).await?;
        query("UPDATE containers SET ssh_enabled = $1, https_enabled = $2 WHERE id = $3")
            .bind(container.ssh_enabled)
            .bind(container.https_enabled)
            .bind(id)
            .run(&mut tx)
            .await?;
        let entry = match toggle {
            Toggle::Https(_) => outgoing::https_toggled(&container, cause)?,
            Toggle::Ssh(_) => outgoing::ssh_toggled(&container, cause)?,
        };
        self.database.announce(&mut tx, &entry).await?;
        tx.commit().await?;
        Ok(Some(container))
    }

    /// Deletes a container with its requests; false if there is none.
    pub async fn delete_container(
        &self,
        user_id: i64,
        id: &str,
        cause: &Cause,
    ) -> sqlx::Result<bool> {
        let mut tx = self.database.begin().await?;
        let Some(container) = owned(&mut tx, user_id, id).await? else {
            return Ok(false);
        };
        self.remove(&mut tx, &container, cause).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Removes a container within the caller's transaction. Its address stays
    /// reserved until its processes are gone.
    pub(super) async fn remove(
        &self,
        tx: &mut Transaction,
        container: &Container,
        cause: &Cause,
    ) -> sqlx::Result<()> {
        let version = bump(tx, &container.id).await?;
        query("DELETE FROM containers WHERE id = $1")
            .bind(&container.id)
            .run(&mut *tx)
            .await?;
        let deleted = outgoing::container_deleted(container, version, cause)?;
        self.database.announce(tx, &deleted).await
    }

    /// Whether auth said that this user is gone.
    pub async fn is_deleted_user(&self, user_id: i64) -> sqlx::Result<bool> {
        is_deleted(self.database.sql(), user_id).await
    }
}

/// Whether there is a tombstone for this user.
pub(super) async fn is_deleted<'c>(
    on: impl Into<Executor<'c>>,
    user_id: i64,
) -> sqlx::Result<bool> {
    query("SELECT EXISTS (SELECT 1 FROM user_cache WHERE user_id = $1 AND deleted_at IS NOT NULL)")
        .bind(user_id)
        .value(on)
        .await
}

/// A container of this user, within a transaction.
pub(super) async fn owned(
    tx: &mut Transaction,
    user_id: i64,
    id: &str,
) -> sqlx::Result<Option<Container>> {
    query("SELECT * FROM containers WHERE id = $1 AND user_id = $2")
        .bind(id)
        .bind(user_id)
        .optional(tx)
        .await
}

/// The version of the container's next event.
pub(super) async fn bump(tx: &mut Transaction, id: &str) -> sqlx::Result<i64> {
    query("UPDATE containers SET version = version + 1 WHERE id = $1 RETURNING version")
        .bind(id)
        .value(tx)
        .await
}

async fn free_id(tx: &mut Transaction) -> sqlx::Result<ContainerId> {
    for _ in 0..ID_DRAWS {
        let id = ContainerId::random();
        // An address still held by a deleted container's processes counts, too.
        let taken: bool = query(
            "SELECT EXISTS (SELECT 1 FROM containers WHERE id = $1) \
             OR EXISTS (SELECT 1 FROM local_addresses WHERE container_id = $1)",
        )
        .bind(id.as_str())
        .value(&mut *tx)
        .await?;
        if !taken {
            return Ok(id);
        }
    }
    Err(sqlx::Error::Protocol("no free container id".into()))
}

async fn insert(tx: &mut Transaction, container: &Container) -> sqlx::Result<()> {
    query(
        "INSERT INTO containers (id, user_id, owner_username, name, image, memory_mb, storage_gb, \
         instance_type, status, ssh_enabled, https_enabled, run, announced, version, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'pending', $9, $10, $11, $12, $13, $14)",
    )
    .bind(&container.id)
    .bind(container.user_id)
    .bind(&container.owner_username)
    .bind(&container.name)
    .bind(&container.image)
    .bind(container.memory_mb)
    .bind(container.storage_gb)
    .bind(&container.instance_type)
    .bind(container.ssh_enabled)
    .bind(container.https_enabled)
    .bind(container.run)
    .bind(container.announced)
    .bind(container.version)
    .bind(container.created_at)
    .run(tx)
    .await
    .map(drop)
}

/// False if it is not a key of the container's owner.
async fn add_key(tx: &mut Transaction, container: &Container, key_id: i64) -> sqlx::Result<bool> {
    let added = query(
        "INSERT INTO container_keys (container_id, key_id) \
         SELECT $1, id FROM ssh_keys WHERE id = $2 AND user_id = $3",
    )
    .bind(&container.id)
    .bind(key_id)
    .bind(container.user_id)
    .run(tx)
    .await?;
    Ok(added == 1)
}
