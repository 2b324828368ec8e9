//! Tap devices that stay when nobody has them open, so that a machine finds its own and the switch keeps its port.
//!
//! A tap of this agent carries the alias `basalt <port id>`; no other is ever changed or deleted. Links are listed and set by rtnetlink(7), the
//! owner is read in sysfs, and taps are made and unmade by ioctl.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use model::PortId;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, LinkUnspec};

use super::{Failure, blocking};
use crate::seen::Tap;

mod ioctl;

/// What an alias of ours begins with.
const ALIAS_PREFIX: &str = "basalt ";

/// The taps of this host.
#[derive(Debug, Clone)]
pub struct Taps {
    netlink: Handle,
}

impl Taps {
    /// Opens a netlink socket; its task ends with the runtime.
    ///
    /// # Errors
    /// [`Failure`] when the kernel refuses the socket.
    pub fn open() -> Result<Self, Failure> {
        let (connection, netlink, _) = rtnetlink::new_connection()
            .map_err(|error| Failure::caused("open a netlink socket", "is AF_NETLINK allowed to the agent?", error))?;
        tokio::spawn(connection);
        Ok(Self { netlink })
    }

    /// The taps that carry our alias.
    ///
    /// # Errors
    /// [`Failure`] when links cannot be listed.
    pub async fn list(&self) -> Result<BTreeMap<String, Tap>, Failure> {
        let links: Vec<LinkMessage> = self
            .netlink
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| Failure::caused("list network links", "is AF_NETLINK allowed to the agent?", error))?;
        Ok(links.iter().filter_map(tap_of).collect())
    }

    /// Makes a tap or puts it right.
    ///
    /// # Errors
    /// [`Failure`], among others when a link of that name is not ours.
    pub async fn set(&self, name: &str, port: PortId, want: Tap) -> Result<(), Failure> {
        let found = self.find(name).await?;
        if let Some(link) = &found
            && !alias(link).is_some_and(|alias| alias.starts_with(ALIAS_PREFIX) || alias.is_empty())
            && alias(link).is_some()
        {
            let what = format!("set up tap {name}: a link of that name is there and its alias is {:?}", alias(link));
            return Err(Failure::new(what, format!("rename or delete the link {name}, if it is not needed")));
        }
        let (owned_name, owner) = (name.to_owned(), want.owner);
        blocking(move || {
            ioctl::make_persistent(&owned_name, owner).map_err(|error| {
                let remedy = "are /dev/net/tun and CAP_NET_ADMIN there, and is no other kind of link named so?";
                Failure::caused(format!("make tap {owned_name}"), remedy, error)
            })
        })
        .await?;
        let builder = LinkUnspec::new_with_name(name)
            .append_extra_attribute(LinkAttribute::IfAlias(format!("{ALIAS_PREFIX}{port}")))
            .append_extra_attribute(LinkAttribute::Mtu(want.mtu));
        let message = if want.up { builder.up() } else { builder.down() }.build();
        self.netlink.link().set(message).execute().await.map_err(|error| {
            let what = format!("set MTU {} and state of tap {name}", want.mtu);
            Failure::caused(what, "does the agent have CAP_NET_ADMIN?", error)
        })
    }

    /// Deletes a tap of ours; none of that name is fine.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be deleted.
    pub async fn delete(&self, name: &str) -> Result<(), Failure> {
        let Some(link) = self.find(name).await?.filter(|link| tap_of(link).is_some()) else { return Ok(()) };
        self.netlink
            .link()
            .del(link.header.index)
            .execute()
            .await
            .map_err(|error| Failure::caused(format!("delete tap {name}"), "does the agent have CAP_NET_ADMIN?", error))
    }

    async fn find(&self, name: &str) -> Result<Option<LinkMessage>, Failure> {
        match self.netlink.link().get().match_name(name).execute().try_next().await {
            Ok(link) => Ok(link),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
            Err(error) => {
                Err(Failure::caused(format!("look up link {name}"), "is AF_NETLINK allowed to the agent?", error))
            }
        }
    }
}

fn tap_of(link: &LinkMessage) -> Option<(String, Tap)> {
    if !alias(link)?.starts_with(ALIAS_PREFIX) {
        return None;
    }
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })?;
    let owner = std::fs::read_to_string(format!("/sys/class/net/{name}/owner")).ok()?.trim().parse().ok();
    Some((name, Tap { owner, mtu, up: link.header.flags.contains(LinkFlags::Up) }))
}

fn alias(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
        _ => None,
    })
}
