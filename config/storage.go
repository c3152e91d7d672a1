package config

import (
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v4"
)

func (b *builder) storage(v value) {
	s := &b.cfg.Storage
	s.Pos = v.pos()
	if v.node.Kind != yaml.MappingNode {
		as(&s.URL, storageURL)(v)
		return
	}
	present := v.object(fields{
		"url": as(&s.URL, storageURL),
		"encrypt": func(v value) {
			v.need(v.object(fields{"keys": list(&s.Keys, b.secret)}), "keys")
		},
		"snapshot": as(&s.Snapshot, b.existing),
	})
	v.need(present, "url")
	snapshot, wanted := present["snapshot"]
	switch {
	case !wanted:
	case !present.any("encrypt"):
		snapshot.refuseKey(plainSnapshot())
	case strings.HasPrefix(s.URL, "file:"):
		v.d.warn(snapshot.path, uselessSnapshot())
	}
}

// storageURL checks the shape of a storage URL. Messages do not repeat it: it
// may hold a password, which is refused.
func storageURL(text string) (string, *refusal) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", badStorage("like file:///var/lib/edge or s3://bucket/prefix?region=eu-west-1")
	case u.User != nil:
		return "", badStorage("without user and password: credentials come from the environment, a file or the role of the machine")
	case u.Fragment != "" || u.Opaque != "":
		return "", badStorage("it has no # and two slashes after the scheme")
	}
	switch u.Scheme {
	case "file":
		return fileStorage(u)
	case "s3":
		return bucket(u, "bucket", s3Option, "region=NAME, endpoint=https://host:port, path_style=true or false")
	case "gs":
		return bucket(u, "bucket", gsOption, "endpoint=https://host:port, credentials=/path/of/key.json or default")
	case "azblob":
		return bucket(u, "container", azblobOption, "account=NAME, endpoint=https://host:port/path")
	case "":
		return "", badStorage("a folder is written file:///var/lib/edge")
	default:
		return "", badStorage("schemes: file, s3, gs, azblob")
	}
}

func fileStorage(u *url.URL) (string, *refusal) {
	if u.Host != "" && u.Host != "localhost" || !strings.HasPrefix(u.Path, "/") || path.Clean(u.Path) == "/" {
		return "", badStorage("three slashes and an absolute path: file:///var/lib/edge")
	}
	if u.RawQuery != "" || u.ForceQuery {
		return "", badStorage("a folder has no options after ?")
	}
	return "file://" + (&url.URL{Path: path.Clean(u.Path)}).EscapedPath(), nil
}

// bucket checks a URL that starts with the name of a bucket, as the vendor calls
// it, and may have options.
func bucket(u *url.URL, noun string, option func(key, text string) bool, options string) (string, *refusal) {
	if u.Hostname() == "" || u.Port() != "" {
		return "", badStorage(fmt.Sprintf("a %s comes first: %s://%s/prefix", noun, u.Scheme, noun))
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return "", badStorage("the options after ? are malformed")
	}
	for _, key := range slices.Sorted(maps.Keys(query)) {
		if values := query[key]; len(values) != 1 || !option(key, values[0]) {
			return "", badStorageOption(key, options)
		}
	}
	return u.String(), nil
}

func s3Option(key, text string) bool {
	switch key {
	case "region":
		return validName(text)
	case "path_style":
		return text == "true" || text == "false"
	case "endpoint":
		_, r := endpoint(text)
		return r == nil
	default:
		return false
	}
}

func gsOption(key, text string) bool {
	switch key {
	case "endpoint":
		return storageEndpoint(text)
	case "credentials": // of a service account or of workload identity federation
		return text == "default" || path.IsAbs(text) && !strings.ContainsFunc(text, unicode.IsControl)
	default:
		return false
	}
}

func azblobOption(key, text string) bool {
	switch key {
	case "account":
		return validName(text)
	case "endpoint":
		return storageEndpoint(text)
	default:
		return false
	}
}

// storageEndpoint reports whether text is the base URL of a server, which may
// have a path, as emulators do.
func storageEndpoint(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && validHost(u.Hostname()) &&
		u.User == nil && u.RawQuery == "" && u.Fragment == ""
}
