package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
)

// A refusal is a Problem without its place. Every message of this package is
// made by one of the constructors below, and a test demands that the fixtures
// in testdata/ show each of them. None takes a value that may hold a secret.
type refusal struct{ message, hint string }

// The document as a whole.

func cannotRead(cause error) *refusal {
	r := &refusal{fmt.Sprintf("cannot read the configuration: %v", cause), "name a file with --config, or start from the annotated routes.yaml"}
	if errors.Is(cause, fs.ErrPermission) {
		r.hint = "the user that edge runs as must be able to read it"
	}
	return r
}

func tooLarge(limit int) *refusal {
	return &refusal{fmt.Sprintf("larger than %d KiB", limit>>10), "routes.yaml holds no data; keep certificates and keys in files of their own"}
}

// badSyntax adds to what the YAML library says the mistake that people make.
func badSyntax(cause string) *refusal {
	r := &refusal{message: "not valid YAML: " + cause}
	for _, known := range []struct{ words, hint string }{
		{"mapping values are not allowed", `is this line indented like its neighbours, or the one above without its colon or the space behind it? Text with ": " in it needs quotes`},
		{"collection, did not find", "the keys of one item start in the same column, and so do the dashes of a list"},
		{"block mapping, did not find", "the keys of one item start in the same column; is a quote or bracket above not closed?"},
		{"did not find expected ',' or", `is a bracket, a brace or a comma missing? Text with ": " in it needs quotes`},
		{"unexpected end of stream", "a quote is not closed"},
		{"cannot start any token", "quote text that starts with @, ` or %"},
		{"unknown escape", `a \ needs 'single quotes'`},
	} {
		if strings.Contains(cause, known.words) {
			r.hint = known.hint
			break
		}
	}
	return r
}

func unquotedStar() *refusal {
	return &refusal{"not valid YAML: a * that is not quoted", `quote the name, as in "*.example.com"`}
}

func badSpace() *refusal {
	return &refusal{"not valid YAML: there is a no-break space in this line", "it only looks like a space; type one"}
}

func badTab() *refusal {
	return &refusal{"not valid YAML: a tab cannot indent", "use spaces"}
}

func badEncoding() *refusal {
	return &refusal{"not UTF-8 text", "save the file as UTF-8"}
}

func secondDocument() *refusal {
	return &refusal{"a second YAML document starts here", "one file holds one configuration; remove the line with --- or ..."}
}

func emptyDocument() *refusal {
	return &refusal{"the file is empty", `the smallest configuration has "version: 1", "acme:" and "routes:"`}
}

func noAlias() *refusal {
	return &refusal{"YAML anchors and aliases are not allowed", "write the value out; named pools and policies can be shared"}
}

func noTag() *refusal {
	return &refusal{"YAML tags, words that start with !, are not allowed", "remove it, or quote it when it is text; one file holds everything, nothing can be included"}
}

// Keys and shapes.

func unknownKey(key string, known, later []string) *refusal {
	r := &refusal{message: fmt.Sprintf("unknown key %q", key)}
	switch near := nearest(key, slices.Concat(known, later)); {
	case near == "":
		r.hint = "known keys: " + strings.Join(known, ", ")
	case slices.Contains(later, near):
		r.hint = fmt.Sprintf("%q is not supported yet", near)
	default:
		r.hint = fmt.Sprintf("did you mean %q?", near)
	}
	return r
}

func duplicateKey(key string, line int) *refusal {
	return &refusal{fmt.Sprintf("key %q is here twice", key), fmt.Sprintf("the first is in line %d", line)}
}

func badKey() *refusal {
	return &refusal{"a key must be plain text", ""}
}

func missingKey(key string) *refusal {
	r := &refusal{message: fmt.Sprintf("%q is missing", key)}
	if key == "version" {
		r.hint = "the first line is: version: 1"
	}
	return r
}

func wrongShape(want, got string) *refusal {
	r := &refusal{message: fmt.Sprintf("want %s, got %s", want, got)}
	switch want {
	case aList:
		r.hint = `[A, B], or each in a line of its own behind "- "`
	case anObject:
		r.hint = "{KEY: VALUE}, or each KEY: VALUE in an indented line of its own"
	}
	return r
}

func emptyList() *refusal {
	return &refusal{"the list is empty", "remove the key or add an item"}
}

func notYet() *refusal {
	return &refusal{"not supported yet", "this version of edge does not know it; remove it"}
}

func notYetValue(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is not supported yet", value), "this version of edge does not know it"}
}

func exclusive(a, b, hint string) *refusal {
	return &refusal{fmt.Sprintf("%q and %q exclude each other", a, b), hint}
}

func wantOneOf(names []string) *refusal {
	return &refusal{"want exactly one of the keys " + strings.Join(names, ", "), ""}
}

func badVersion(got string) *refusal {
	return &refusal{fmt.Sprintf("version %s is not known", got), "this edge reads version: 1"}
}

// Scalars.

func badChoice(value string, allowed []string) *refusal {
	return &refusal{fmt.Sprintf("unknown value %q", value), "one of: " + strings.Join(allowed, ", ")}
}

func badDuration(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is not a duration", value), "like 500ms, 90s, 10m, 1h30m or 7d"}
}

func badSize(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is not a size", value), "like 512B, 32KiB, 64MiB or 1GiB"}
}

func badInteger(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is not a whole number", value), ""}
}

func badBoolean(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is neither true nor false", value), "write true or false"}
}

func outOfRange(value, least, most string) *refusal {
	return &refusal{fmt.Sprintf("%s is out of range", value), fmt.Sprintf("from %s to %s", least, most)}
}

func cannotBeOff() *refusal {
	return &refusal{"this cannot be off", "every wait has an end; give a long duration instead"}
}

func badName(name string) *refusal {
	return &refusal{fmt.Sprintf("%q cannot be a name", name), "1 to 64 letters, digits, dots, dashes or underscores; it starts with a letter or digit"}
}

func badQuota(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is not a number of events in a time", value), "like 300/3h, 50/7d or 5/h; off is no limit"}
}

func badCommonName(value string) *refusal {
	return &refusal{fmt.Sprintf("%q cannot be the common name of a CA", value), "like ISRG Root X1, as the certificate has it"}
}

func inlineSecret() *refusal {
	return &refusal{"a secret cannot be written here", `refer to it: "env:NAME", "file:/path" or "credential:NAME"`}
}

func badHost(value string, cause error) *refusal {
	r := &refusal{message: "not a name to serve: " + cause.Error()}
	_, notIP := netip.ParseAddr(value)
	switch {
	case notIP == nil:
		r.hint = "but none of a host: no zone, not unspecified, no multicast"
	case value == "*":
		r.hint = "a route without host matches any host"
	case strings.ContainsAny(value, ", "):
		r.hint = "several names are a list: [a.example.com, b.example.com]"
	}
	return r
}

func publicWildcard(name, suffix string) *refusal {
	return &refusal{fmt.Sprintf("%q covers everything below the public suffix %q", name, suffix), "no CA signs it; name the domain, as in *.example." + suffix}
}

func badZone(zone string) *refusal {
	return &refusal{fmt.Sprintf("zone %q has a wildcard", zone), "write the zone alone, as in example.com"}
}

func badAddress(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is not host:port", value), `like ":443", "10.0.0.1:8443" or "[::1]:443"; the port is a number`}
}

func badPrefix(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is neither an IP address nor a range", value), "like 10.0.0.0/8 or 192.0.2.1"}
}

func badPath(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is not a path to match", value), `"/v1" is /v1 and everything below, "=/v1" is /v1 alone; no final slash, no *, no query, no escapes, no empty segments`}
}

func badTarget(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is not a path to ask", value), "like /health or /v1/models?ready=1"}
}

func badEndpoint() *refusal {
	return &refusal{"an endpoint is scheme://host:port", `like "http://10.0.0.11:8000"; http or https, no user, path or query: the request keeps its own path`}
}

func badDirectory() *refusal {
	return &refusal{"not an ACME directory", "letsencrypt, letsencrypt-staging, google, zerossl or an https:// URL without user; http:// only on a loopback address"}
}

func badEmail(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is not an e-mail address", value), "like ops@example.com"}
}

func badStorage(hint string) *refusal {
	return &refusal{"not a storage URL", hint}
}

func badStorageOption(key, known string) *refusal {
	return &refusal{fmt.Sprintf("unknown or malformed option %q in the storage URL", key), known}
}

func plainSnapshot() *refusal {
	return &refusal{"a snapshot holds private keys, and nothing encrypts them", "add encrypt: {keys: [SECRET]}; openssl rand -base64 32 makes one"}
}

func badProject(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is not a project ID", value), "like my-project-123; gcloud config get project prints it"}
}

func badResourceGroup(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is not the name of a resource group", value), "up to 90 letters, digits and _-.(), no dot at the end"}
}

func badCommand() *refusal {
	return &refusal{"the command starts with no absolute path", "command: [/usr/local/bin/change-dns, ARGUMENT]; there is no shell and no $PATH"}
}

func secretAlone(missing string) *refusal {
	return &refusal{fmt.Sprintf("client_secret needs %q", missing), "az ad sp create-for-rbac prints both; without client_secret the default chain is used"}
}

func azureInLong() *refusal {
	return &refusal{"Azure wants a subscription and a resource group named", "write it out under providers: NAME: {azure: {subscription_id: ID, resource_group: NAME}} and issuers:"}
}

func badRate(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is not a rate", value), "like 300/m, 5/s or 1000/1h"}
}

func badSocket(limit int) *refusal {
	return &refusal{fmt.Sprintf("a socket path has at most %d bytes", limit), "unix(7) allows no more"}
}

// References between the parts.

func unknownName(kind, name string, known []string) *refusal {
	hint := "there are none"
	if len(known) > 0 {
		hint = plural(kind) + ": " + several(known)
	}
	return &refusal{fmt.Sprintf("no %s %q", kind, name), hint}
}

func repeated(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is listed twice", value), ""}
}

func nameTaken(name, where string) *refusal {
	return &refusal{fmt.Sprintf("the name %q is taken by %s", name, where), ""}
}

// Listeners.

func notForRedirect(key string) *refusal {
	return &refusal{fmt.Sprintf("a redirecting listener has no %q", key), "it only sends clients to https"}
}

func noTLSListener() *refusal {
	return &refusal{"every listener redirects", "add one that serves, like https: {address: \":443\"}"}
}

func sameAddress(address, other string) *refusal {
	return &refusal{fmt.Sprintf("address %q is taken by listener %q", address, other), ""}
}

func tooMany(limit int, what string) *refusal {
	return &refusal{fmt.Sprintf("more than %d %s", limit, what), "one listener serves any number of hosts"}
}

func routeOnRedirect(name string) *refusal {
	return &refusal{fmt.Sprintf("listener %q redirects and serves no routes", name), ""}
}

// Certificates.

func noProvider() *refusal {
	return &refusal{"dns-01 needs a DNS provider", "add challenge: {providers: [NAME]} and define NAME under providers:"}
}

func ambiguousZone(zone, a, b string) *refusal {
	if zone == "" {
		return &refusal{fmt.Sprintf("providers %q and %q both serve any zone", a, b), "give them zones:"}
	}
	return &refusal{fmt.Sprintf("providers %q and %q both serve zone %q", a, b, zone), "one zone has one provider"}
}

func chooseIssuer(issuers []string) *refusal {
	return &refusal{"which issuer is it?", "set certificate_defaults: {issuers: [NAME]}; issuers: " + several(issuers)}
}

func notForChallenge(key, kind string) *refusal {
	return &refusal{fmt.Sprintf("%q means nothing to challenge %s", key, kind), "edge writes no DNS record for it; remove it, or set type: dns-01"}
}

func noBinding(ca, page string) *refusal {
	return &refusal{
		fmt.Sprintf("%s wants the account bound to one of its own, and \"eab\" is missing", ca),
		"under issuers:, acme: {eab: {key_id: SECRET, hmac: SECRET}}; get both at " + page,
	}
}

func noIssuer(host string) *refusal {
	return &refusal{fmt.Sprintf("no certificate covers %q", host), `let edge obtain it, with acme: {email: you@example.com, dns: cloudflare}, or name a file under certificates:`}
}

func localName(name, issuer string) *refusal {
	return &refusal{
		fmt.Sprintf("%q exists only inside a network, and issuer %q is a public CA", name, issuer),
		"name an issuer of your own, like lab: {internal: {}}; a local host of a route needs no entry here",
	}
}

func addressByDNS(name, issuer, challenge string) *refusal {
	return &refusal{
		fmt.Sprintf("issuer %q proves names by %s, and %q is an IP address", issuer, challenge, name),
		"RFC 8738 wants http-01 or tls-alpn-01; list it under certificates: with an issuer that has such a challenge",
	}
}

func wildcardByHost(name, issuer, challenge string) *refusal {
	return &refusal{
		fmt.Sprintf("issuer %q proves names by %s, and %q is a wildcard", issuer, challenge, name),
		"CAs want dns-01 or dns-persist-01; list it under certificates: with an issuer that has such a challenge",
	}
}

func nameInTwoCertificates(name, other string) *refusal {
	return &refusal{fmt.Sprintf("%q is in certificate %q already", name, other), "one name has one certificate"}
}

func coveredByWildcard(name, wildcard string) *refusal {
	return &refusal{fmt.Sprintf("%q is covered by %q in the same certificate", name, wildcard), "remove it; CAs refuse both together"}
}

func bundleTooLarge(names, limit int, issuer string) *refusal {
	return &refusal{fmt.Sprintf("%d names in one certificate; issuer %q signs at most %d", names, issuer, limit), "split it; Let's Encrypt signs 25 with its profiles tlsserver and shortlived, 100 with classic"}
}

// Routes and pools.

func noBackend() *refusal {
	return &refusal{"the route leads nowhere", "add pool: NAME or endpoints: [URL]"}
}

func grpcIsNoProtocol(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is not a protocol of connections", value), "did you mean h2c? gRPC runs over h2c to http endpoints, over h2 to https ones"}
}

func wrongScheme(p PoolProtocol) *refusal {
	if p == PoolH2C {
		return &refusal{"protocol h2c is cleartext, and this endpoint is https", "write http://… or protocol: h2"}
	}
	return &refusal{"protocol h2 needs TLS, and this endpoint is http", "write https://… or protocol: h2c"}
}

func badServerName(value string) *refusal {
	return &refusal{fmt.Sprintf("%q is neither a host name nor an IP address", value), "like gpu.example.com or 10.0.0.12, as the certificate of the endpoint has it: no scheme, port or wildcard, in ASCII"}
}

func nameWithoutTLS() *refusal {
	return &refusal{"no endpoint of this pool shows a certificate", "server_name is for https endpoints; remove it"}
}

func shadowed(earlier string) *refusal {
	return &refusal{fmt.Sprintf("no request gets here: route %q matches the same host and path before it", earlier), ""}
}

func conflictingTLS(host, other string) *refusal {
	return &refusal{fmt.Sprintf("routes of %q demand different TLS", host), fmt.Sprintf("TLS is agreed before there is a path; give this route and route %q the same policies", other)}
}

func weakerThanListener(policy, listener string) *refusal {
	return &refusal{fmt.Sprintf("policy %q accepts older TLS than listener %q", policy, listener), "a policy can only demand more; lower tls.min_version of the listener"}
}

func conflictingPolicies(a, b string) *refusal {
	return &refusal{fmt.Sprintf("policies %q and %q demand different TLS", a, b), "list one of them"}
}

func conflictingCAs(host, other string) *refusal {
	return &refusal{
		fmt.Sprintf("%q and route %q, which takes what is left of it, demand certificates of different client CAs", host, other),
		"a connection shows one certificate; use one CA, or a listener of its own",
	}
}

func emptyPolicy() *refusal {
	return &refusal{"the policy demands nothing", "add tls: {min_version: \"1.3\"} or client_certificates: {ca: FILE}"}
}

func noPath() *refusal {
	return &refusal{"the path is empty", "a relative one starts at the folder of routes.yaml"}
}

func setInDefaults(section, key string) *refusal {
	return &refusal{fmt.Sprintf("%q cannot differ between routes", key), fmt.Sprintf("set defaults: {%s: {%s: …}}", section, key)}
}

// Warnings: legal, but probably not what was meant.

func unused(kind string) *refusal {
	return &refusal{fmt.Sprintf("this %s is not used", kind), ""}
}

func cutsStreams() *refusal {
	return &refusal{"a total timeout cuts streams that are still producing", "stream_idle ends a stream that hangs"}
}

func uselessSnapshot() *refusal {
	return &refusal{"a snapshot of a folder is of no use", "it stands in for a bucket that cannot be reached; remove it"}
}

func sameEndpointTwice(url string) *refusal {
	return &refusal{fmt.Sprintf("endpoint %q is in this pool twice", url), "weight: 2 says the same"}
}

func needsPort(challenge string, port int, listener string) *refusal {
	return &refusal{
		fmt.Sprintf("no listener answers %s on port %d, where CAs ask", challenge, port),
		"ignore this when a load balancer maps the port; else add " + listener,
	}
}

// several lists the first of many names.
func several(names []string) string {
	const most = 16
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// plural is the section that defines things of a kind.
func plural(kind string) string {
	if stem, ok := strings.CutSuffix(kind, "y"); ok {
		return stem + "ies"
	}
	return kind + "s"
}

// nearest returns the word that differs from s by a slip of the finger, or "".
func nearest(s string, words []string) string {
	best, limit := "", max(1, len(s)/3)
	for _, word := range words {
		if d := distance(s, word); d <= limit {
			best, limit = word, d-1
		}
	}
	return best
}

// distance is the number of characters to insert, delete, replace or swap with
// their neighbour to get from a to b (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return max(len(a), len(b))
	}
	var before []int
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = slices.Min([]int{last[j] + 1, row[j-1] + 1, last[j-1] + change})
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
