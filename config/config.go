// Package config is routes.yaml as Go: the schema, its defaults and its
// validation. Load turns a file into a *Config that is complete (every default
// filled in, short forms expanded, names canonical) and consistent (every
// reference resolves), or into the list of all problems with their positions:
//
//	cfg, err := config.Load("routes.yaml")
//	if err != nil {
//		fmt.Fprintln(os.Stderr, err) // routes.yaml:12:5: routes[3].pool: no pool "gpu" (pools: cpu, gpus)
//	}
//
// A Config is pure data. It is never modified after Load, so it may be shared
// freely. Nothing here opens a network connection, a listener or a key file.
package config

import (
	"crypto/tls"
	"net/netip"
	"time"
)

// Config is one validated routes.yaml. Maps are never nil; "off" durations are 0.
type Config struct {
	Path         string // the file it came from
	Listeners    map[string]*Listener
	Storage      Storage
	Providers    map[string]*Provider
	Issuers      map[string]*Issuer      // as written, and InternalIssuer where local names need it; see IssuersFor
	Certificates map[string]*Certificate // as written; empty means inferred from route hosts
	ServeOnly    bool                    // certificates_role: serve; this replica orders nothing and needs no DNS credentials
	Bundles      Bundles
	Pools        map[string]*Pool
	Routes       []*Route // in file order
	Control      Control
	Telemetry    Telemetry
	Log          Log
	Webhook      Secret // URL that certificate warnings are posted to, read by WebhookURL; zero means none
	Drain        Drain
	Warnings     []Problem // legal but probably wrong
}

// Prefix is a set of IP addresses.
type Prefix = netip.Prefix

// Protocol is an application protocol that a listener offers by ALPN.
type Protocol string

// The protocols a listener can speak.
const (
	H1 Protocol = "h1"
	H2 Protocol = "h2"
)

// Listener is one address that edge accepts connections on. A listener either
// terminates TLS and routes, or answers every request with a redirect.
type Listener struct {
	Name               string
	Address            string // host:port as net.Listen takes it; port 0 is allowed
	Protocols          []Protocol
	Redirect           bool     // plaintext; every request is redirected to https
	TLS                TLS      // zero for a redirect listener
	DefaultCertificate string   // name in Certificates served to clients without SNI; "" refuses them
	Trusted            []Prefix // peers whose X-Forwarded-* fields are kept and extended
}

// TLS is what a listener or a policy demands of a connection.
type TLS struct {
	MinVersion uint16 // tls.VersionTLS12 or tls.VersionTLS13; 0 in a policy means: the listener's
	ClientCA   string // PEM file of the CAs whose client certificates are demanded; "" demands none
}

// Storage says where certificates, accounts and locks are kept.
type Storage struct {
	URL      string   // file:///dir, s3://bucket/prefix?region=…, gs://bucket/prefix, azblob://container/prefix?account=…; options are checked by name and form
	Keys     []Secret // base64 of 32 bytes each; the first encrypts, all decrypt; none: private keys are stored as they are
	Snapshot string   // directory for an encrypted copy that edge starts from when the storage is down; "" is none; needs Keys
	Pos      Pos
}

// Provider is one set of DNS credentials. Exactly one of the kinds is set.
type Provider struct {
	Name           string
	Zones          []string // canonical zone names this provider is used for; empty means any
	Rate           float64  // requests a second to its API; 0 means what its kind is known to allow
	RFC2136        *RFC2136
	Route53        *Route53
	Cloudflare     *Cloudflare
	GoogleCloudDNS *GoogleCloudDNS
	Azure          *AzureDNS
	Exec           *ExecDNS
	Pos            Pos
}

// RFC2136 is a DNS server that takes TSIG-signed dynamic updates.
type RFC2136 struct {
	Server       string // host:port
	KeyName      string // with final dot
	KeyAlgorithm string // hmac-sha256, hmac-sha512 …
	Key          Secret // base64
}

// Route53 is Amazon Route 53; the zero value uses the SDK's default credential chain.
type Route53 struct {
	Region       string
	HostedZoneID string // needed where a private zone has the name too: by name, whichever Route 53 lists first is used
}

// Cloudflare is Cloudflare's DNS API.
type Cloudflare struct {
	Token Secret // API token with Zone:DNS:Edit; default env:CLOUDFLARE_API_TOKEN
}

// GoogleCloudDNS is Google Cloud DNS; without Credentials the application
// default credentials are used (workload identity, service account of the VM).
type GoogleCloudDNS struct {
	Project     string // "" means that of the credentials
	Credentials Secret // JSON of a service account; zero means the default chain
}

// AzureDNS is Azure DNS. SubscriptionID and ResourceGroup are those of the zones
// and never empty; without ClientSecret the default chain is used
// (environment, workload identity, managed identity).
type AzureDNS struct {
	SubscriptionID string
	ResourceGroup  string
	TenantID       string
	ClientID       string // also chooses a user-assigned managed identity
	ClientSecret   Secret
}

// ExecDNS is a program of the operator's that changes records:
// COMMAND… add|delete ZONE NAME VALUE, once for each value.
type ExecDNS struct {
	Command []string      // absolute path and leading arguments
	Timeout time.Duration // of one call
}

// Challenge is how control of names is proven to a CA.
type Challenge string

// The challenge types.
const (
	DNS01        Challenge = "dns-01"
	DNSPersist01 Challenge = "dns-persist-01"
	HTTP01       Challenge = "http-01"
	TLSALPN01    Challenge = "tls-alpn-01"
)

// Internal is a CA of edge's own, kept in the storage.
type Internal struct {
	Lifetime time.Duration // of certificates
}

// EAB binds a new ACME account to an account at the CA (RFC 8555 section 7.3.4).
type EAB struct {
	KeyID Secret
	HMAC  Secret // base64url
}

// Quota is a number of events in a sliding window. The zero value means the
// preset of the CA; Off means no limit.
type Quota struct {
	Count int
	Per   time.Duration
	Off   bool
}

// Quotas are what edge allows itself at a CA, shared by all replicas, so that
// the CA never has to refuse.
type Quotas struct {
	Orders     Quota // new orders
	Domain     Quota // new certificates for one registered domain
	Duplicates Quota // new certificates for exactly the same names
	Failed     Quota // failed validations of one name
}

// InternalIssuer is the name of the issuer that exists without being written.
const InternalIssuer = "internal"

// Issuer obtains certificates: by ACME, or from a CA of edge's own when
// Internal is set; then no other field but Name is.
type Issuer struct {
	Name          string
	Internal      *Internal
	Directory     string // absolute URL
	Staging       string // directory for edge certs … --staging; "" when the CA has none
	CA            string // PEM file that the directory's own HTTPS certificate is verified with; "" means the system roots
	Email         string
	Profile       string   // "" lets edge choose
	EAB           *EAB     // nil when the CA wants none
	Chains        []string // preferred_chains: common names of roots, most wanted first; empty takes the CA's default
	Quotas        Quotas
	Challenge     Challenge
	Providers     []string // names in Config.Providers; which one is used depends on the zone
	Resolvers     []string // host:port, recursive resolvers; empty means the system's
	Authoritative Authoritative
	Pos           Pos
}

// Authoritative says which servers must show a challenge record before the CA
// is told to look. The zero value asks every name server of the zone on port 53.
type Authoritative struct {
	Off     bool     // ask the resolvers instead
	Servers []string // host:port; ask exactly these
}

// KeyType is the kind of a certificate's private key.
type KeyType string

// The key types that CAs accept.
const (
	P256    KeyType = "p256"
	P384    KeyType = "p384"
	RSA2048 KeyType = "rsa2048"
)

// Certificate is an entry of certificates: either names to obtain one for, or a pair of files.
type Certificate struct {
	Name     string
	Names    []string  // canonical; wildcards and IP addresses allowed; empty for a file certificate
	Issuers  []string  // names in Config.Issuers; the first is used, the others when it fails for long
	KeyTypes []KeyType // one certificate for each; empty for a file certificate
	File     *CertificateFile
	Pos      Pos
}

// CertificateFile is a certificate that edge does not obtain itself. Both files
// are watched; a bad pair is refused and the last good one stays.
type CertificateFile struct {
	Certificate string // PEM chain, leaf first
	PrivateKey  Secret // PEM; a bare path is accepted here and means file:
}

// Packing says how names that no wildcard covers are put into certificates.
type Packing string

// The ways to pack names.
const (
	ByZone  Packing = "by_zone"
	PerName Packing = "per_name"
)

// Bundles are the defaults for certificates that are inferred from route hosts.
type Bundles struct {
	Issuers  []string // of names that are not local; IssuersFor knows the others
	Packing  Packing
	MaxNames int
	KeyTypes []KeyType // one certificate for each
}

// Balance is how a pool picks an endpoint.
type Balance string

// The balancing policies.
const (
	RoundRobin    Balance = "round_robin"
	LeastRequests Balance = "least_requests"
)

// PoolProtocol is what edge speaks to the endpoints of a pool, whatever its
// clients speak.
type PoolProtocol string

// The protocols of pools. Load fills in PoolH1; who makes a Pool by hand may
// leave it out, so code asks for the other two.
const (
	PoolH1  PoolProtocol = "h1"  // HTTP/1.1
	PoolH2  PoolProtocol = "h2"  // HTTP/2 by ALPN; every endpoint is https
	PoolH2C PoolProtocol = "h2c" // HTTP/2 with prior knowledge (RFC 9113 section 3.3); every endpoint is http
)

// Pool is a set of model servers that are interchangeable for a route.
type Pool struct {
	Name       string // "routes[2]" for a pool written inline in a route
	Endpoints  []Endpoint
	Protocol   PoolProtocol
	Balance    Balance
	Health     *Health // nil means no active checks: every endpoint is believed up
	Retry      Retry
	CA         string // PEM file for https endpoints; "" means the system roots
	ServerName string // sent to https endpoints and looked for in their certificates, in lower case; "" means the host of each endpoint's URL
	Connect    time.Duration
	Pos        Pos
}

// Endpoint is one address of a pool.
type Endpoint struct {
	URL    string // scheme://host:port, http or https, no path
	Weight int    // ≥ 1
}

// Health is an active check: GET Path every Interval; 2xx is a pass.
type Health struct {
	Path       string
	Interval   time.Duration
	Timeout    time.Duration // of one check; ≤ Interval
	Rise, Fall int           // passes to come up, failures to go down
}

// Retry says when a request is sent to another endpoint.
type Retry struct {
	Attempts int   // in all, ≥ 1
	Replay   int64 // bytes of request body kept for a second attempt
}

// Timeouts bound each wait of a request. 0 means off.
type Timeouts struct {
	FirstByte  time.Duration // from the request sent to the response head
	StreamIdle time.Duration // silence between two reads of a response, or a write that makes no progress
	BodyIdle   time.Duration // silence between two reads of a request body
	Request    time.Duration // total; off unless asked for
}

// Limits bound what a client may send.
type Limits struct {
	Body    int64 // bytes of a request body; 0 is unlimited
	Headers int64 // bytes of a request head
}

// Route sends the requests that it matches to a pool. Several hosts and one
// path; the most specific route wins (exact host, wildcard, any; exact path,
// longest segment prefix; then file order).
type Route struct {
	Name      string   // "routes[2]" when not named
	Hosts     []string // canonical names and IP addresses; "*.zone" is a wildcard of one label; empty means any host
	Path      string   // "/" and segment prefixes "/v1"; with Exact only "/v1" itself
	Exact     bool
	Listeners []string // names of TLS listeners; never empty
	Pool      string   // key in Config.Pools
	TLS       TLS      // from its policies; all routes of one host agree
	Timeouts  Timeouts
	Limits    Limits
	Pos       Pos
}

// Control is the command line's way into a running edge.
type Control struct {
	Socket string // path of a unix socket
}

// Telemetry is the read-only HTTP endpoint.
type Telemetry struct {
	Address string // host:port; "" is off
}

// Log configures the log on standard error.
type Log struct {
	Format string // "text" or "json"
	Access bool   // one line at the end of each request
}

// Drain says how edge stops.
type Drain struct {
	Delay   time.Duration // between readiness going down and listeners closing
	Timeout time.Duration // for streams to end
}

// DefaultMinVersion is what a listener demands when routes.yaml is silent.
const DefaultMinVersion = tls.VersionTLS12
