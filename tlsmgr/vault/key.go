package vault

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"

	"edge/config"
)

// root is the directory of the layout. Its version changes with Format only
// when an older edge could not even tell that an object is newer.
const root = "edge/v1"

// Kind is a type of object, and the directory that it is kept in.
type Kind string

// The kinds of objects.
const (
	Certificates Kind = "certificates"
	Accounts     Kind = "accounts"
	Orders       Kind = "orders"
	Authorities  Kind = "authorities"
	Budgets      Kind = "budgets"
	Replicas     Kind = "replicas"
	Challenges   Kind = "challenges"
)

// Kinds returns all kinds, those that hold private keys first.
func Kinds() []Kind {
	return []Kind{Certificates, Accounts, Orders, Authorities, Budgets, Replicas, Challenges}
}

// Secret reports whether objects of this kind hold private keys and are sealed.
func (k Kind) Secret() bool {
	switch k {
	case Certificates, Accounts, Orders, Authorities:
		return true
	case Budgets, Replicas, Challenges:
		return false
	}
	return false
}

// Dir is the directory of the kind, for store.ListVersions.
func (k Kind) Dir() string { return root + "/" + string(k) }

// Key is where the object called id is. Ids come from people, so what a key
// cannot hold is escaped.
func (k Kind) Key(id string) string { return k.Dir() + "/" + url.PathEscape(id) + ".json" }

// Lease is the name of the lease under which the object called id is changed.
// A certificate and the order that renews it share one. Replicas write only
// their own object, and budgets are changed by Swap alone; neither needs it.
func (k Kind) Lease(id string) string {
	switch k {
	case Certificates, Orders:
		return "certificate/" + id
	case Accounts:
		return "account/" + url.PathEscape(id)
	case Authorities:
		return "authority/" + id
	case Budgets:
		return "budget/" + id
	case Replicas:
		return "replica/" + id
	case Challenges:
		return "challenge/" + id
	}
	return string(k) + "/" + id
}

// CertificateKey is where the certificate called id is.
func CertificateKey(id string) string { return Certificates.Key(id) }

// AccountKey is where the ACME account called id is; see AccountID.
func AccountKey(id string) string { return Accounts.Key(id) }

// OrderKey is where the order for the certificate called id is.
func OrderKey(id string) string { return Orders.Key(id) }

// AuthorityKey is where the CA of the internal issuer of this name is.
func AuthorityKey(issuer string) string { return Authorities.Key(issuer) }

// BudgetKey is where the budget at a CA is; see BudgetID.
func BudgetKey(id string) string { return Budgets.Key(id) }

// ReplicaKey is where the heartbeat of the replica called id is.
func ReplicaKey(id string) string { return Replicas.Key(id) }

// ChallengeKey is where the answer to a challenge is; see ChallengeID.
func ChallengeKey(id string) string { return Challenges.Key(id) }

// Parse is the inverse of Kind.Key; false for foreign objects, also for those
// whose name only decodes to an id.
func Parse(key string) (kind Kind, id string, ok bool) {
	rest, ok := strings.CutPrefix(key, root+"/")
	if !ok {
		return "", "", false
	}
	dir, name, ok := strings.Cut(rest, "/")
	if !ok || !slices.Contains(Kinds(), Kind(dir)) {
		return "", "", false
	}
	name, ok = strings.CutSuffix(name, ".json")
	if !ok || strings.Contains(name, "/") {
		return "", "", false
	}
	id, err := url.PathUnescape(name)
	if err != nil || Kind(dir).Key(id) != key {
		return "", "", false
	}
	return Kind(dir), id, true
}

// AccountID names the account at a CA: one for each directory and e-mail
// address. The host is for people, the digest for uniqueness.
func AccountID(directory, email string) string {
	return host(directory) + "-" + digest(directory, email)
}

// BudgetID names what is spent at a CA. CAs count for all accounts of a name
// together, so it is one for each directory.
func BudgetID(directory string) string { return host(directory) + "-" + digest(directory) }

// ChallengeID names the answer to a challenge by what the CA asks with: the
// token for http-01, the name for tls-alpn-01. So whoever is asked finds it
// with one read.
func ChallengeID(kind config.Challenge, asked string) string {
	sum := sha256.Sum256([]byte(string(kind) + "\n" + asked))
	return hex.EncodeToString(sum[:16])
}

func host(directory string) string {
	if u, err := url.Parse(directory); err == nil && u.Hostname() != "" {
		return u.Hostname()
	}
	return "acme"
}

func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	return hex.EncodeToString(sum[:6])
}
