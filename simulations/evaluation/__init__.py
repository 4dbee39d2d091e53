"""The shipped method and its peers on victims that no weights have seen: tables and figures."""
