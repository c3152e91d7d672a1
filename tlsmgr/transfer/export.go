package transfer

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"edge/tlsmgr/vault"

	"github.com/caddyserver/certmagic"
)

// Format is what a certificate is exported as.
type Format string

// The formats.
const (
	PEM        Format = "pem"        // ID.crt and ID.key, or ID.pem with both
	Kubernetes Format = "kubernetes" // ID.yaml, a Secret of type kubernetes.io/tls
	CertMagic  Format = "certmagic"  // what Caddy finds, for each of the names
)

// Form is how a certificate is exported. The zero value will do for most.
type Form struct {
	Single    bool   // PEM: chain and key in one file
	Name      string // Kubernetes: of the Secret; "" is made from the id
	Namespace string // Kubernetes: "" leaves it to kubectl
	Directory string // CertMagic: the ACME directory that Caddy uses; "" is where the certificate is from
}

// File is a file of an export. Path is relative, with slashes.
type File struct {
	Path string
	Data []byte // holds a private key, unless it is named .crt or .json
}

// Export is c in another format. The same certificate makes the same files.
func Export(c *vault.Certificate, format Format, form Form) ([]File, error) {
	p, err := parse([]byte(c.Chain), []byte(c.PrivateKey))
	if err != nil {
		return nil, fmt.Errorf("export %q: %w", c.ID, err)
	}
	var files []File
	switch format {
	case PEM:
		files = exportPEM(c.ID, p, form)
	case Kubernetes:
		files, err = exportSecret(c.ID, p, form)
	case CertMagic:
		files, err = exportCertMagic(c, p, form)
	default:
		err = fmt.Errorf("unknown format %q (pem, kubernetes, certmagic)", format)
	}
	if err != nil {
		return nil, fmt.Errorf("export %q: %w", c.ID, err)
	}
	return files, nil
}

func exportPEM(id string, p *pair, form Form) []File {
	base := fileName(id)
	if form.Single {
		return []File{{base + ".pem", []byte(p.chain + p.keyPEM())}}
	}
	return []File{{base + ".crt", []byte(p.chain)}, {base + ".key", []byte(p.keyPEM())}}
}

// fileName is id as one component of a path that is not hidden.
func fileName(id string) string {
	name := url.PathEscape(id)
	if strings.HasPrefix(name, ".") {
		name = "%2E" + name[1:]
	}
	return name
}

// exportSecret is a Secret as kubectl create secret tls makes it. Every string
// is quoted as in JSON, which YAML is a superset of: a name like 1.0 or on stays
// a string.
func exportSecret(id string, p *pair, form Form) ([]File, error) {
	name := form.Name
	if name == "" {
		name = secretName(id)
	}
	if !subdomain.MatchString(name) || len(name) > 253 {
		return nil, fmt.Errorf("%q cannot be the name of a Secret (want lower-case letters, digits, '-' and '.', at most 253)", name)
	}
	if form.Namespace != "" && (!label.MatchString(form.Namespace) || len(form.Namespace) > 63) {
		return nil, fmt.Errorf("%q cannot be a namespace (want lower-case letters, digits and '-', at most 63)", form.Namespace)
	}
	var b bytes.Buffer
	b.WriteString("apiVersion: v1\nkind: Secret\nmetadata:\n")
	fmt.Fprintf(&b, "  name: %s\n", quote(name))
	if form.Namespace != "" {
		fmt.Fprintf(&b, "  namespace: %s\n", quote(form.Namespace))
	}
	b.WriteString("type: kubernetes.io/tls\ndata:\n")
	fmt.Fprintf(&b, "  tls.crt: %s\n", quote(base64.StdEncoding.EncodeToString([]byte(p.chain))))
	fmt.Fprintf(&b, "  tls.key: %s\n", quote(base64.StdEncoding.EncodeToString([]byte(p.keyPEM()))))
	return []File{{fileName(id) + ".yaml", b.Bytes()}}, nil
}

// Names of objects and of namespaces in Kubernetes (RFC 1123, see
// https://kubernetes.io/docs/concepts/overview/working-with-objects/names/).
var (
	subdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	label     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	foreign   = regexp.MustCompile(`[^a-z0-9.-]+`)
)

// secretName makes a name of id: what is not allowed in it becomes a dash.
func secretName(id string) string {
	if rest, ok := strings.CutPrefix(id, "_."); ok {
		id = "wildcard." + rest
	}
	var labels []string
	for l := range strings.SplitSeq(foreign.ReplaceAllString(strings.ToLower(id), "-"), ".") {
		if l = strings.Trim(l, "-"); l != "" {
			labels = append(labels, l)
		}
	}
	name := strings.Join(labels, ".")
	return strings.TrimRight(name[:min(len(name), 253)], "-.")
}

// quote is s, which is ASCII, as a string of JSON and YAML.
func quote(s string) string { return `"` + s + `"` }

// exportCertMagic is what Caddy finds when it looks for each name: it keeps one
// certificate for each and takes one that has more names.
func exportCertMagic(c *vault.Certificate, p *pair, form Form) ([]File, error) {
	directory := form.Directory
	if directory == "" {
		directory = c.Directory
	}
	if u, err := url.Parse(directory); err != nil || u.Host == "" { // imported, or from a CA of edge's own
		return nil, errors.New("it is from no ACME directory, and Caddy looks for certificates by that (say which one Caddy uses: --directory)")
	}
	key, err := certmagic.PEMEncodePrivateKey(p.key)
	if err != nil {
		return nil, errors.New("certmagic cannot store such a private key")
	}
	issuer := issuerKey(directory)
	var files []File
	for _, name := range p.names {
		meta, err := json.MarshalIndent(metadata{SANs: []string{name}, IssuerData: &issuerData{CA: directory}}, "", "\t")
		if err != nil {
			return nil, err
		}
		files = append(files,
			File{certmagic.StorageKeys.SiteCert(issuer, name), []byte(p.chain)},
			File{certmagic.StorageKeys.SitePrivateKey(issuer, name), key},
			File{certmagic.StorageKeys.SiteMeta(issuer, name), meta},
		)
	}
	return files, nil
}
