package config

import (
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
)

// storageURL checks the shape of a storage URL. Messages do not repeat it: it
// may hold a password, which is refused.
func storageURL(text string) (string, *refusal) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", badStorage("like file:///var/lib/edge or s3://bucket/prefix?region=eu-west-1")
	case u.User != nil:
		return "", badStorage("without user and password: credentials come from $AWS_ACCESS_KEY_ID and $AWS_SECRET_ACCESS_KEY, a profile or a role")
	case u.Fragment != "" || u.Opaque != "":
		return "", badStorage("it has no # and two slashes after the scheme")
	}
	switch u.Scheme {
	case "file":
		return fileStorage(u)
	case "s3":
		return s3Storage(u)
	case "gs", "azblob":
		return "", notYetValue(u.Scheme)
	case "":
		return "", badStorage("a folder is written file:///var/lib/edge")
	default:
		return "", badStorage("schemes: file, s3")
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

func s3Storage(u *url.URL) (string, *refusal) {
	if u.Hostname() == "" || u.Port() != "" {
		return "", badStorage("a bucket comes first: s3://bucket/prefix")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return "", badStorage("the options after ? are malformed")
	}
	for _, key := range slices.Sorted(maps.Keys(query)) {
		if values := query[key]; len(values) != 1 || !s3Option(key, values[0]) {
			return "", badStorageOption(key)
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
