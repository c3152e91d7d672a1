package vault

import (
	"encoding/json"
	"fmt"
	"time"

	"edge/config"
)

// Object is a type that is kept in the storage. Load, Save and Decode take
// them; how each is called in the bucket is its Kind.
type Object interface {
	Certificate | Account | Order | Authority | Budget | Replica | Challenge
}

// object is what every Object can do.
type object interface {
	kind() Kind
	belongs(id string) error // unless the content is that of the object called id
	fits() error             // unless its parts belong together
}

func kindOf[T Object]() Kind { return any(*new(T)).(object).kind() }

// Certificate is one certificate with its key. They are one object, so that a
// reader never sees a chain and the key of another.
type Certificate struct {
	Format     int            `json:"format"`
	ID         string         `json:"id"`
	Names      []string       `json:"names"`               // sorted; those in the certificate
	Issuer     string         `json:"issuer"`              // name in the configuration of who ordered it
	Directory  string         `json:"directory"`           // of the CA; "internal:NAME" for an internal issuer, "" for imported ones
	Profile    string         `json:"profile,omitempty"`   // ACME profile
	KeyType    config.KeyType `json:"key_type"`            // of PrivateKey
	Chain      string         `json:"chain"`               // PEM, leaf first
	PrivateKey string         `json:"private_key"`         // PEM, PKCS #8
	OrderURL   string         `json:"order_url,omitempty"` // at the CA
	ObtainedAt time.Time      `json:"obtained_at"`
	Owner      string         `json:"owner,omitempty"`    // replica that ordered it
	Imported   bool           `json:"imported,omitempty"` // brought by the operator
	Renewal    *Renewal       `json:"renewal,omitempty"`  // what the CA said; nil when it was not asked
}

// Renewal is what a CA advises about the renewal of a certificate (RFC 9773).
type Renewal struct {
	Start       time.Time `json:"start,omitzero"`    // of the suggested window
	End         time.Time `json:"end,omitzero"`      // of the suggested window
	Selected    time.Time `json:"selected,omitzero"` // moment in the window that all replicas keep to
	Checked     time.Time `json:"checked,omitzero"`  // when the CA was asked
	Next        time.Time `json:"next,omitzero"`     // when it is to be asked again (Retry-After)
	Explanation string    `json:"explanation,omitempty"`
	Replace     bool      `json:"replace,omitempty"` // at once: the certificate is or will be revoked
}

// Account is an ACME account with its key, shared by all replicas.
type Account struct {
	Format     int          `json:"format"`
	Directory  string       `json:"directory"`
	Email      string       `json:"email,omitempty"`
	Account    Registration `json:"account"`
	PrivateKey string       `json:"private_key"`                // PEM, PKCS #8
	NextKey    string       `json:"next_private_key,omitempty"` // likewise; of a rollover that has not ended
}

// Registration is the account as its CA describes it (RFC 8555 section 7.1.2,
// whose names the JSON has).
type Registration struct {
	Status                 string          `json:"status,omitempty"`
	Contact                []string        `json:"contact,omitempty"` // URLs
	TermsOfServiceAgreed   bool            `json:"termsOfServiceAgreed,omitempty"`
	ExternalAccountBinding json.RawMessage `json:"externalAccountBinding,omitempty"`
	Orders                 string          `json:"orders,omitempty"`   // URL
	Location               string          `json:"location,omitempty"` // URL of the account
}

// Order is how far the order for the certificate of the same id is: the
// journal that an heir resumes from, and what failed before.
type Order struct {
	Format     int                    `json:"format"`
	ID         string                 `json:"id"`
	Attempt    *Attempt               `json:"attempt,omitempty"`  // nil: nothing is open
	Failures   int                    `json:"failures,omitempty"` // in a row
	Error      string                 `json:"error,omitempty"`    // of the last failure
	Next       time.Time              `json:"next,omitzero"`      // not to be tried before
	Waits      map[string]time.Time   `json:"waits,omitempty"`    // by issuer: not to be asked before
	Quarantine map[string]Quarantined `json:"quarantine,omitempty"`
	Leftovers  []Leftover             `json:"leftovers,omitempty"`
	Noticed    string                 `json:"noticed,omitempty"` // what the operator was told last
	Owner      string                 `json:"owner,omitempty"`   // replica that wrote it
	UpdatedAt  time.Time              `json:"updated_at,omitzero"`
}

// Quarantined is a name that is left out of orders so that the others go on.
type Quarantined struct {
	Reason   string    `json:"reason"`
	Failures int       `json:"failures"`
	Since    time.Time `json:"since"`
	Next     time.Time `json:"next"` // when it is tried again
}

// Attempt is an open order. It is written before the CA hears of it, and the
// URL right after.
type Attempt struct {
	Names      []string         `json:"names"`
	Issuer     string           `json:"issuer"`
	Directory  string           `json:"directory"`
	Account    string           `json:"account,omitempty"` // URL
	Profile    string           `json:"profile,omitempty"`
	Replaces   string           `json:"replaces,omitempty"` // RFC 9773 section 4.1
	KeyType    config.KeyType   `json:"key_type"`
	Challenge  config.Challenge `json:"challenge,omitempty"`
	PrivateKey string           `json:"private_key"` // PEM, PKCS #8; of the certificate
	CSR        []byte           `json:"csr,omitempty"`
	URL        string           `json:"url,omitempty"`     // "" when the CA may not know it yet
	Records    []Record         `json:"records,omitempty"` // that may stand in DNS
	Tokens     []string         `json:"tokens,omitempty"`  // ids of challenges that may be stored
	StartedAt  time.Time        `json:"started_at"`
	Charged    time.Time        `json:"charged,omitzero"` // the event in the budget of the CA; zero is none
}

// Leftover is what could not be removed from DNS when an attempt ended.
type Leftover struct {
	Issuer  string    `json:"issuer"` // whose providers can remove it
	Records []Record  `json:"records"`
	Since   time.Time `json:"since"`
}

// Record is a TXT record that edge set.
type Record struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Authority is the CA of an internal issuer.
type Authority struct {
	Format    int    `json:"format"`
	Issuer    string `json:"issuer"`
	RootChain string `json:"root_chain"` // PEM; the root
	RootKey   string `json:"root_key"`   // PEM, PKCS #8
	Chain     string `json:"chain"`      // PEM; the intermediate that signs
	Key       string `json:"key"`        // PEM, PKCS #8; of the intermediate
}

// Budget is when edge asked what of a CA, as far back as limits reach.
type Budget struct {
	Format  int                    `json:"format"`
	Orders  []time.Time            `json:"orders,omitempty"`
	Domains map[string][]time.Time `json:"domains,omitempty"` // by registered domain
	Sets    map[string][]time.Time `json:"sets,omitempty"`    // by digest of a set of names
	Failed  map[string][]time.Time `json:"failed,omitempty"`  // validations, by name
}

// Replica is the heartbeat of one edge process.
type Replica struct {
	Format   int               `json:"format"`
	ID       string            `json:"id"`
	Owner    string            `json:"owner,omitempty"`
	Version  string            `json:"version,omitempty"` // of edge
	Started  time.Time         `json:"started"`
	Beat     time.Time         `json:"beat"`              // by its own clock; for people
	Seq      int64             `json:"seq"`               // grows with each beat
	Interval time.Duration     `json:"interval_ns"`       // between beats
	Digest   string            `json:"digest,omitempty"`  // of all certificates that it has loaded
	Recent   map[string]string `json:"recent,omitempty"`  // certificate id to serial, loaded last; at most MaxRecent
	Pending  []string          `json:"pending,omitempty"` // certificate ids that it has not loaded
	Role     string            `json:"role,omitempty"`    // certificates_role
}

// MaxRecent bounds Replica.Recent.
const MaxRecent = 256

// Challenge is the answer to an http-01 or tls-alpn-01 challenge, so that any
// replica can give it.
type Challenge struct {
	Format           int              `json:"format"`
	Kind             config.Challenge `json:"kind"`
	Token            string           `json:"token"`
	KeyAuthorization string           `json:"key_authorization"`
	Name             string           `json:"name"`
	Expires          time.Time        `json:"expires"`
}

// ID is the id under which c is kept.
func (c Challenge) ID() string {
	if c.Kind == config.TLSALPN01 {
		return ChallengeID(c.Kind, c.Name)
	}
	return ChallengeID(c.Kind, c.Token)
}

func (Certificate) kind() Kind { return Certificates }
func (Account) kind() Kind     { return Accounts }
func (Order) kind() Kind       { return Orders }
func (Authority) kind() Kind   { return Authorities }
func (Budget) kind() Kind      { return Budgets }
func (Replica) kind() Kind     { return Replicas }
func (Challenge) kind() Kind   { return Challenges }

// stamp fills in the format.
func stamp[T Object](t *T) {
	switch o := any(t).(type) {
	case *Certificate:
		o.Format = Format
	case *Account:
		o.Format = Format
	case *Order:
		o.Format = Format
	case *Authority:
		o.Format = Format
	case *Budget:
		o.Format = Format
	case *Replica:
		o.Format = Format
	case *Challenge:
		o.Format = Format
	}
}

func (c Certificate) belongs(id string) error { return same("certificate", c.ID, id) }

// An account carries no id; its id follows from what it is for.
func (a Account) belongs(id string) error {
	return same("account", AccountID(a.Directory, a.Email), id)
}
func (o Order) belongs(id string) error     { return same("order", o.ID, id) }
func (a Authority) belongs(id string) error { return same("authority", a.Issuer, id) }

// A budget does not say whose it is. One in the wrong place only counts wrong.
func (Budget) belongs(string) error         { return nil }
func (r Replica) belongs(id string) error   { return same("replica", r.ID, id) }
func (c Challenge) belongs(id string) error { return same("challenge", c.ID(), id) }

// same refuses an object that lies under the key of another.
func same(what, holds, id string) error {
	if holds != id {
		return fmt.Errorf("holds %s %q (was it copied?)", what, holds)
	}
	return nil
}
