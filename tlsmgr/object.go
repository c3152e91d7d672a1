package tlsmgr

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"edge/config"
	"edge/tlsmgr/store"
)

// The layout of the storage. Everything below edge/v1 is readable by every edge
// that knows format 1; what a newer edge wrote is refused, never overwritten.
const (
	certificateDir = "edge/v1/certificates"
	accountDir     = "edge/v1/accounts"
	objectFormat   = 1
)

// object is a certificate in the storage. It is one object, so that a reader
// never sees a chain and the key of another, and it is written only by Swap
// with the version that was read under the lease, so that a replica that slept
// cannot overwrite what came after it.
type object struct {
	Format     int            `json:"format"`
	ID         string         `json:"id"`
	Names      []string       `json:"names"` // sorted
	Issuer     string         `json:"issuer"`
	Directory  string         `json:"directory"`
	Profile    string         `json:"profile,omitempty"`
	KeyType    config.KeyType `json:"key_type"`
	Chain      string         `json:"chain"`       // PEM, leaf first
	PrivateKey string         `json:"private_key"` // PEM, PKCS #8
	OrderURL   string         `json:"order_url,omitempty"`
	ObtainedAt time.Time      `json:"obtained_at"`
	Owner      string         `json:"owner,omitempty"` // Options.Owner of who ordered it
}

// errNewer is a stored object that only a newer edge understands.
var errNewer = errors.New("written by a newer edge")

// certificateKey is the name of a bundle's object. Ids come from people, so
// what a key cannot hold is escaped.
func certificateKey(id string) string {
	return certificateDir + "/" + url.PathEscape(id) + ".json"
}

// certificateID is the inverse of certificateKey; false for foreign objects,
// also those whose name only decodes to an id.
func certificateID(key string) (string, bool) {
	name, ok := strings.CutPrefix(key, certificateDir+"/")
	if !ok {
		return "", false
	}
	name, ok = strings.CutSuffix(name, ".json")
	if !ok || strings.Contains(name, "/") {
		return "", false
	}
	id, err := url.PathUnescape(name)
	return id, err == nil && certificateKey(id) == key
}

// checkFormat reads the format of a stored object before anything else.
func checkFormat(data []byte) error {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	switch {
	case head.Format > objectFormat:
		return fmt.Errorf("%w (its format is %d, this edge knows %d: upgrade edge, or give it a storage of its own)", errNewer, head.Format, objectFormat)
	case head.Format < 1:
		return fmt.Errorf("has no format")
	default:
		return nil
	}
}

// decodeCertificate reads a stored certificate and checks that its parts
// belong together.
func decodeCertificate(id string, data []byte) (*certificate, error) {
	if err := checkFormat(data); err != nil {
		return nil, err
	}
	var o object
	if err := json.Unmarshal(data, &o); err != nil {
		return nil, err
	}
	if o.ID != id {
		return nil, fmt.Errorf("holds certificate %q (was it copied?)", o.ID)
	}
	return o.certificate()
}

// certificate makes o ready for handshakes.
func (o *object) certificate() (*certificate, error) {
	pair, err := tls.X509KeyPair([]byte(o.Chain), []byte(o.PrivateKey))
	if err != nil {
		return nil, err
	}
	c, err := newCertificate(o.ID, pair)
	if err != nil {
		return nil, err
	}
	c.object = o
	return c, nil
}

// stored is what this process knows about one object of the storage.
type stored struct {
	version store.Version // "" when the object is gone or could not be read; what it held still serves
	cert    *certificate  // the last good content; nil when there never was one
	err     error         // why the object is not usable
}

// need says why a bundle has to be ordered, "" when it has not.
type need string

const (
	needNothing need = ""
	needMissing need = "missing"
	needNames   need = "names differ"
	needIssuer  need = "issuer differs"
	needKey     need = "key type differs"
	needRenewal need = "due for renewal"
)

// needs compares what the plan wants with what the storage has. More names than
// wanted are enough until the renewal, so that removing a host orders nothing
// and that two replicas of which one is reloaded already do not undo each
// other's work. A change of the profile alone waits for the renewal too.
func (b *Bundle) needs(s *stored, directory string, now time.Time) need {
	if s == nil || s.version == "" || s.err != nil || s.cert == nil {
		return needMissing
	}
	o := s.cert.object
	switch {
	case slices.ContainsFunc(b.Names, func(n string) bool { return !slices.Contains(s.cert.names, n) }):
		return needNames
	case o.Directory != directory:
		return needIssuer
	case o.KeyType != b.KeyType:
		return needKey
	case !now.Before(renewAt(s.cert)):
		return needRenewal
	default:
		return needNothing
	}
}

func encodeObject(o *object) ([]byte, error) {
	return json.Marshal(o) //nolint:gosec // the key is what is stored
}
