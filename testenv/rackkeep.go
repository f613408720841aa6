package testenv

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// A rack that is started again in its folder is the same rack: its disks, the
// account of its BMCs and their certificates are what was declared.
const (
	rackSecretFile = "bmc.secret" // user:password
	rackBMCFile    = "bmc.pem"    // a machine's: key and certificate of its BMC
)

// keptFile reads what an earlier start left, else makes it for the owner alone.
func keptFile(path string, fresh func() ([]byte, error)) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if !errors.Is(err, os.ErrNotExist) {
		return raw, err
	}
	if raw, err = fresh(); err != nil {
		return nil, err
	}
	// Named once it is whole: half of one would be kept for ever.
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600 by itself
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(raw)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	return raw, os.Rename(f.Name(), path)
}

// rackAccount is the BMCs' account of the rack in dir.
func rackAccount(dir string) (user, password string, err error) {
	path := filepath.Join(dir, rackSecretFile)
	raw, err := keptFile(path, func() ([]byte, error) { return []byte("recast:" + rand.Text()[:16]), nil })
	if err != nil {
		return "", "", fmt.Errorf("keep the BMCs' account: %w", err)
	}
	user, password, ok := strings.Cut(string(raw), ":")
	if !ok || user == "" || password == "" {
		return "", "", fmt.Errorf("read the BMCs' account: %s: want user:password; remove the file", path)
	}
	return user, password, nil
}

// rackCertificate is that of the BMC of the machine in dir.
func rackCertificate(dir string) (*tls.Certificate, error) {
	path := filepath.Join(dir, rackBMCFile)
	raw, err := keptFile(path, func() ([]byte, error) {
		c, err := redfishCertificate()
		if err != nil {
			return nil, err
		}
		key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			return nil, err
		}
		return append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})...), nil
	})
	if err != nil {
		return nil, fmt.Errorf("keep the BMC's certificate: %w", err)
	}
	c, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		return nil, fmt.Errorf("read the BMC's certificate: %s: %w; remove the file", path, err)
	}
	return &c, nil
}

// RackUntouched says that a disk still holds what a rack fills its disks with
// where every system begins and every partition table stands.
func RackUntouched(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, fmt.Errorf("look at a disk of the rack: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("look at a disk of the rack: %w", err)
	}
	b := make([]byte, min(info.Size(), osMiB))
	for _, at := range []int64{0, info.Size() - int64(len(b))} {
		if _, err := f.ReadAt(b, at); err != nil && err != io.EOF {
			return false, fmt.Errorf("look at a disk of the rack: %w", err)
		}
		if len(bytes.Trim(b, string([]byte{rackFill}))) != 0 {
			return false, nil
		}
	}
	return len(b) > 0, nil
}
