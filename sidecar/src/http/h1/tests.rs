mod answers;
mod differential;
mod ends;
mod requests;
mod smuggling;
mod upgrades;
mod world;
