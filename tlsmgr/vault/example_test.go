package vault_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"edge/config"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

func Example() {
	dir, err := os.MkdirTemp("", "edge")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	key := base64.StdEncoding.EncodeToString([]byte("32 bytes from a random generator")) // openssl rand -base64 32
	if err := os.WriteFile(dir+"/key", []byte(key), 0o600); err != nil {
		panic(err)
	}
	keys, err := vault.NewKeyring([]config.Secret{{Ref: "file:" + dir + "/key"}})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	s, err := store.Open(ctx, "file://"+dir+"/store", store.Options{})
	if err != nil {
		panic(err)
	}
	defer func() { _ = s.Close() }()
	v := vault.New(s, vault.Options{Keys: keys})

	_, version, err := vault.Load[vault.Certificate](ctx, v, "example.com")
	fmt.Println("there is one:", !errors.Is(err, fs.ErrNotExist))
	_, err = vault.Save(ctx, v, "example.com", &vault.Certificate{ID: "example.com", PrivateKey: "secret"}, version)
	fmt.Println("saved:", err == nil)
	_, err = vault.Save(ctx, v, "example.com", &vault.Certificate{ID: "example.com"}, version)
	fmt.Println("saved by somebody who did not know:", !errors.Is(err, store.ErrConflict))
	c, _, err := vault.Load[vault.Certificate](ctx, v, "example.com")
	fmt.Println(c, err)
	// Output:
	// there is one: false
	// saved: true
	// saved by somebody who did not know: false
	// certificate example.com <nil>
}

func ExampleUpdate() {
	dir, err := os.MkdirTemp("", "edge")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s, err := store.Open(context.Background(), "file://"+dir, store.Options{})
	if err != nil {
		panic(err)
	}
	defer func() { _ = s.Close() }()
	v := vault.New(s, vault.Options{})
	for range 2 {
		r, _, err := vault.Update(context.Background(), v, "edge-0", func(r *vault.Replica) (bool, error) {
			r.ID = "edge-0"
			r.Seq++
			return true, nil
		})
		fmt.Println(r.Seq, err)
	}
	// Output:
	// 1 <nil>
	// 2 <nil>
}
