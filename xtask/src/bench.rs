//! stub
use clap::Args as ClapArgs;
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {}
pub(crate) fn bench(_repo: &crate::repo::Repo, _args: &Args) -> anyhow::Result<()> {
    Ok(())
}
