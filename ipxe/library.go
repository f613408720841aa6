package ipxe

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"recast/inventory"
)

// Imported is an operator's own loader, kept by its digest.
type Imported struct {
	Digest inventory.Digest `json:"digest"`
	// Name is what it is served by, in a folder of its own: a shim loads what it
	// starts by name from the folder that it came from.
	Name string `json:"name"`
	// Beside is the shim that starts this one, whose folder it stands in; "" none.
	Beside inventory.Digest `json:"beside,omitempty"`
	Size   int64            `json:"size"`
	Origin string           `json:"origin,omitempty"` // where it came from, in the operator's words
	Added  time.Time        `json:"added"`
	By     string           `json:"by,omitempty"`
	Binary Binary           `json:"binary"`
	// Revoked says why it is not offered any more; worked out on reading, since the
	// known level rises with recast. "" it is.
	Revoked string `json:"revoked,omitempty"`
}

// Path is the loader's below LoaderPath and, with loaders/ before it, by TFTP.
func (x Imported) Path() string {
	folder := x.Digest
	if x.Beside != "" {
		folder = x.Beside
	}
	return folder.Hex()[:12] + "/" + x.Name
}

// tftpFolder is where imported loaders stand by TFTP.
const tftpFolder = "loaders/"

// Library holds the imported loaders: files in a folder, and all of them in
// memory, so that what is served cannot change under a transfer.
type Library struct {
	dir string

	mu      sync.RWMutex
	loaders map[inventory.Digest]Imported
	content map[string][]byte // by Path
}

// OpenLibrary reads the folder, which need not be there. A loader that is not what
// its digest says is left out; the error names it, and the rest is served.
func OpenLibrary(dir string) (*Library, error) {
	l := &Library{dir: dir, loaders: map[inventory.Digest]Imported{}, content: map[string][]byte{}}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, fmt.Errorf("open loaders: %w", err)
	}
	var bad []error
	for _, e := range entries {
		if path.Ext(e.Name()) != ".json" {
			continue
		}
		if err := l.load(e.Name()); err != nil {
			bad = append(bad, fmt.Errorf("loader %q is left out: %w; recast loader import mends it", e.Name(), err))
		}
	}
	return l, errors.Join(bad...)
}

func (l *Library) load(name string) error {
	raw, err := os.ReadFile(filepath.Join(l.dir, name))
	if err != nil {
		return err
	}
	var x Imported
	if err := json.Unmarshal(raw, &x); err != nil {
		return err
	}
	if err := checkFileName(x.Name); err != nil {
		return err
	}
	if x.Digest.Hex()+".json" != name {
		return fmt.Errorf("its record is about %s", x.Digest)
	}
	b, err := os.ReadFile(filepath.Join(l.dir, x.Digest.Hex()))
	if err != nil {
		return err
	}
	if got := inventory.DigestOf(b); got != x.Digest {
		return fmt.Errorf("its bytes have the digest %s", got)
	}
	// What is read out of it may be more than when it was imported.
	if x.Binary, err = ReadBinary(b); err != nil {
		return err
	}
	x.Revoked = x.Binary.Revoked()
	l.loaders[x.Digest], l.content[x.Path()] = x, b
	return nil
}

// Check reads a loader that shall be imported and says why it may not be.
func (l *Library) Check(b []byte, x Imported) (Imported, error) {
	if got := inventory.DigestOf(b); got != x.Digest {
		return x, fmt.Errorf("import loader: its SHA-256 is %s, not the given %s", got.Hex(), x.Digest.Hex())
	}
	if err := checkFileName(x.Name); err != nil {
		return x, fmt.Errorf("import loader: %w", err)
	}
	var err error
	if x.Binary, err = ReadBinary(b); err != nil {
		return x, fmt.Errorf("import loader: %w", err)
	}
	if why := x.Binary.Revoked(); why != "" {
		return x, fmt.Errorf("import loader: %s; take a newer one", why)
	}
	x.Size = int64(len(b))
	l.mu.RLock()
	defer l.mu.RUnlock()
	if x.Beside != "" {
		shim, ok := l.loaders[x.Beside]
		if !ok || shim.Beside != "" {
			return x, fmt.Errorf("import loader: there is no loader %s to stand beside; import that first", x.Beside.Short())
		}
		if shim.Binary.Arch != x.Binary.Arch {
			return x, fmt.Errorf("import loader: it is for %s, and %s for %s", x.Binary.Arch, x.Beside.Short(), shim.Binary.Arch)
		}
	}
	for _, other := range l.loaders {
		if other.Digest != x.Digest && other.Path() == x.Path() {
			return x, fmt.Errorf("import loader: %s stands at %s already: recast loader remove it, or give another --name", other.Digest.Short(), x.Path())
		}
	}
	return x, nil
}

// Import keeps a loader that Check returned: its bytes first, then its record,
// which makes it count.
func (l *Library) Import(b []byte, x Imported) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	raw, err := json.MarshalIndent(x, "", "  ")
	if err == nil {
		err = os.MkdirAll(l.dir, 0o700)
	}
	if err == nil {
		err = saveFile(filepath.Join(l.dir, x.Digest.Hex()), b)
	}
	if err == nil {
		err = saveFile(filepath.Join(l.dir, x.Digest.Hex()+".json"), raw)
	}
	if err != nil {
		return fmt.Errorf("keep loader: %w", err)
	}
	if old, ok := l.loaders[x.Digest]; ok {
		delete(l.content, old.Path())
	}
	l.loaders[x.Digest], l.content[x.Path()] = x, b
	return nil
}

// Remove forgets a loader; what stands beside it goes first.
func (l *Library) Remove(d inventory.Digest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	x, ok := l.loaders[d]
	if !ok {
		return fmt.Errorf("there is no loader %s; recast loader list shows them", d.Short())
	}
	for _, other := range l.loaders {
		if other.Beside == d {
			return fmt.Errorf("loader %s stands beside it: remove that first", other.Digest.Short())
		}
	}
	// The record first: without it the bytes count for nothing.
	for _, name := range []string{d.Hex() + ".json", d.Hex()} {
		if err := os.Remove(filepath.Join(l.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove loader: %w", err)
		}
	}
	delete(l.loaders, d)
	delete(l.content, x.Path())
	return nil
}

// Get one loader.
func (l *Library) Get(d inventory.Digest) (Imported, bool) {
	if l == nil {
		return Imported{}, false
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	x, ok := l.loaders[d]
	return x, ok
}

// List is sorted by kind, then age.
func (l *Library) List() []Imported {
	if l == nil {
		return nil
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	out := make([]Imported, 0, len(l.loaders))
	for _, x := range l.loaders {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b Imported) int {
		if c := strings.Compare(a.Binary.Kind, b.Binary.Kind); c != 0 {
			return c
		}
		if c := a.Added.Compare(b.Added); c != 0 {
			return c
		}
		return strings.Compare(string(a.Digest), string(b.Digest))
	})
	return out
}

// Open is the content at a Path.
func (l *Library) Open(name string) ([]byte, bool) {
	if l == nil {
		return nil, false
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	b, ok := l.content[name]
	return b, ok
}

// starts is what a shim starts: the loader beside it.
func (l *Library) starts(d inventory.Digest) (Imported, bool) {
	for _, x := range l.List() {
		if x.Beside == d {
			return x, true
		}
	}
	return Imported{}, false
}

// Problem says why a machine cannot boot by its declared loader; "" it can. byHTTP:
// its firmware asks by HTTP Boot.
func (l *Library) Problem(d inventory.Digest, arch inventory.Arch, secure, byHTTP bool) string {
	x, ok := l.Get(d)
	if !ok {
		return fmt.Sprintf("the declared loader %s is not imported: recast loader import FILE --sha256 %s", d.Short(), d.Hex())
	}
	chain := []Imported{x}
	if x.Binary.Kind == "shim" {
		next, ok := l.starts(d)
		if !ok {
			return fmt.Sprintf("the declared loader %s is a shim, and what it starts is missing: recast loader import FILE --beside %s", d.Short(), d.Short())
		}
		chain = append(chain, next)
	}
	last := chain[len(chain)-1]
	for _, x := range chain {
		switch {
		case x.Revoked != "":
			return fmt.Sprintf("the loader %s is refused: %s", x.Digest.Short(), x.Revoked)
		case x.Binary.Arch != arch:
			return fmt.Sprintf("the loader %s is for %s, and the machine is %s", x.Digest.Short(), x.Binary.Arch, arch)
		// What a shim starts may be trusted by the shim alone, or by its owner's key.
		case secure && len(x.Binary.Signers) == 0:
			return fmt.Sprintf("the loader %s is not signed, and the machine is declared secureBoot", x.Digest.Short())
		}
	}
	if byHTTP && (last.Binary.Kind != "ipxe" || !last.Binary.HTTP) {
		return fmt.Sprintf("it asks by HTTP Boot, and the loader %s cannot go on by HTTP: %s", last.Digest.Short(), httpCure)
	}
	return ""
}

// checkFileName accepts a name that can stand in a URL, a TFTP request and a path.
func checkFileName(s string) error {
	ok := s != "" && len(s) <= 40 && s[0] != '.' && s != AutoexecName
	for i := range len(s) {
		ch := s[i]
		ok = ok && ('a' <= ch && ch <= 'z' || 'A' <= ch && ch <= 'Z' || '0' <= ch && ch <= '9' || strings.IndexByte("._-", ch) >= 0)
	}
	if !ok {
		return fmt.Errorf("bad file name %q: want at most 40 letters, digits, '.', '_' and '-', such as shimx64.efi", s)
	}
	return nil
}

// saveFile writes durably: a file of that name is the old one or the whole new one.
func saveFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// OpenTFTP is what TFTP serves beside the loaders that are built in: those of the
// library, and beside each of all the script that iPXE asks the place it came from.
func (h *Handler) OpenTFTP(name string, remote netip.Addr) ([]byte, bool) {
	if name == AutoexecName {
		return []byte(h.autoexec(remote)), true
	}
	rest, ok := strings.CutPrefix(name, tftpFolder)
	if !ok {
		return nil, false
	}
	if folder, file, ok := strings.Cut(rest, "/"); ok && file == AutoexecName && len(folder) == 12 {
		return []byte(h.autoexec(remote)), true
	}
	return h.Library.Open(rest)
}
