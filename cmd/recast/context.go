package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"recast/inventory"
)

// clientContext is where a server is and how it is believed and asked.
type clientContext struct {
	Name  string `json:"name"`
	URL   string `json:"url"`
	CAPEM string `json:"ca"`
	Token string `json:"token,omitempty"`
	// TokenFile is read instead, so that the secret stands in one place.
	TokenFile string           `json:"tokenFile,omitempty"`
	CADigest  inventory.Digest `json:"caDigest,omitempty"`
}

const (
	// localContext is the file a server leaves in its data folder for root.
	localContext = "local.json"
	// currentContext is the file that names the context in use.
	currentContext = "current"
)

func contextDir() (string, error) {
	if dir := os.Getenv("RECAST_CONFIG_DIR"); dir != "" {
		return dir, nil
	}
	base, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find the configuration folder: %w", err)
	}
	return filepath.Join(base, "recast"), nil
}

// localData is where a server on this host has its data.
func localData() string {
	if dir := os.Getenv("RECAST_DATA"); dir != "" {
		return dir
	}
	return defaultData
}

// findContext reads the named context, by its file, by its name or by that of a
// lab, else the current one, else that of the server on this host, which only
// root can read, else that of the lab.
func findContext(name string) (clientContext, error) {
	if name == "" {
		name = os.Getenv("RECAST_CONTEXT")
	}
	if strings.ContainsAny(name, "/.") {
		return readContext(name)
	}
	dir, err := contextDir()
	if err != nil {
		return clientContext{}, err
	}
	if name == "" {
		raw, err := os.ReadFile(filepath.Join(dir, currentContext))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return clientContext{}, fmt.Errorf("read context: %w", err)
		}
		name = strings.TrimSpace(string(raw))
	}
	if name != "" {
		c, err := readContext(filepath.Join(dir, name+".json"))
		if errors.Is(err, os.ErrNotExist) {
			lab := &labFlags{name, labRoot()}
			c, err := readContext(lab.contextFile())
			if errors.Is(err, os.ErrNotExist) {
				return c, codeError{fmt.Errorf("there is no context and no lab %q; recast login --list lists the contexts", name), exitUsage}
			}
			return c, labDenied(err)
		}
		return c, err
	}
	c, err := readContext(filepath.Join(localData(), localContext))
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, os.ErrPermission):
		return c, codeError{errors.New("the server on this host lets only root in without a login: use sudo, or recast login URL"), exitUsage}
	case errors.Is(err, os.ErrNotExist):
		c, err := labContext()
		var coded codeError
		if err = labDenied(err); err == nil || errors.As(err, &coded) {
			return c, err
		}
		return c, codeError{errors.New("no server is known: run recast login URL, or recast serve on this host as root (RECAST_DATA names data that do not stand in /var/lib/recast), or recast lab up"), exitUsage}
	}
	return c, err
}

func readContext(path string) (clientContext, error) {
	var c clientContext
	raw, err := os.ReadFile(path)
	if err != nil {
		return c, codeError{fmt.Errorf("read context: %w; recast login URL writes one", err), exitUsage}
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("read context %s: %w; recast login URL writes it anew", path, err)
	}
	if c.TokenFile != "" {
		token, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return c, codeError{fmt.Errorf("read the operator's token: %w; use sudo, or recast login URL", err), exitUsage}
		}
		c.Token = strings.TrimSpace(string(token))
	}
	return c, nil
}

// writePrivate saves by write, sync, rename, readable by the owner alone.
func writePrivate(path string, raw []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600 by itself
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(raw); err != nil {
		_ = f.Close()
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func saveContext(path string, c clientContext) error {
	raw, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return writePrivate(path, append(raw, '\n'))
}
