package store

import (
	"errors"
	"net/url"
)

func openFile(*url.URL) (driver, string, error) { return nil, "", errors.ErrUnsupported }
