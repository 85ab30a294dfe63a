vcl 4.1;
# Lookups cached by Varnish: SessionM's own bodies, its credentials put in here.

backend sessionm {
  .host = "@UPSTREAM_HOST@";
  .port = "@UPSTREAM_PORT@";
}

sub vcl_recv {
  if (req.http.Authorization != "Bearer @SECRET@") {
    return (synth(401));
  }
  if (req.url !~ "^/connected-content/tags\?user_id=[^&]+$") {
    return (synth(404));
  }
  # Varnish does not cache what has credentials: ours have served, SessionM's are put in below.
  unset req.http.Authorization;
  return (hash);
}

sub vcl_backend_fetch {
  set bereq.url = regsub(bereq.url, "^.*user_id=", "/priv/v1/apps/@UPSTREAM_KEY@/users/") + "/tags";
  set bereq.http.Authorization = "@UPSTREAM_AUTH@";
}

sub vcl_backend_response {
  set beresp.ttl = 5m;
  set beresp.grace = 1h;
}
