package store

import (
	"errors"
	"net/url"
)

func openS3(*url.URL) (driver, string, error) { return nil, "", errors.ErrUnsupported }
