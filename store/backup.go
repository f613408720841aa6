package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// A backup is lines of JSON: a header, one line per record by key, and a
// trailer with the SHA-256 of every byte before it. A record that lives by a
// lease belongs to a running server and stays behind.
//
//	{"recastBackup":1,"epoch":"9f…","revision":812}
//	{"k":"/recast/…","v":"base64","r":97}
//	{"records":1,"sha256":"…"}
const backupVersion = 1

type backupHeader struct {
	Version  int    `json:"recastBackup"`
	Epoch    string `json:"epoch"`
	Revision int64  `json:"revision"`
}

type backupRecord struct {
	Key      string `json:"k"`
	Value    []byte `json:"v"`
	Revision int64  `json:"r"`
}

type backupTrailer struct {
	Records *int   `json:"records"`
	SHA256  string `json:"sha256"`
}

// backupLine bounds one line: the largest key and value in their encoding.
const backupLine = 6*MaxKey + MaxValue/3*4 + 1024

var errBackup = errors.New("the backup is damaged")

// Backup writes all records of s, as they are at one revision, and returns how
// many. The output holds what the store holds, sealed secrets too: keep it 0600.
func Backup(ctx context.Context, s Store, w io.Writer) (int, error) {
	records, revision, err := s.List(ctx, "")
	if err != nil {
		return 0, fmt.Errorf("back up: %w", err)
	}
	n, err := writeBackup(ctx, w, backupHeader{Version: backupVersion, Epoch: s.Epoch(), Revision: revision}, records)
	if err != nil {
		return 0, fmt.Errorf("back up: %w", err)
	}
	return n, nil
}

func writeBackup(ctx context.Context, w io.Writer, head backupHeader, records []Record) (int, error) {
	sum := sha256.New()
	out := bufio.NewWriterSize(w, 1<<20)
	n := 0
	line := func(v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		b = append(b, '\n')
		sum.Write(b)
		_, err = out.Write(b)
		return err
	}
	err := line(head)
	for _, r := range records {
		if err != nil {
			break
		}
		if err = ctx.Err(); err != nil || r.Lease != 0 {
			continue
		}
		err = line(backupRecord{Key: r.Key, Value: r.Value, Revision: r.Revision})
		n++
	}
	if err == nil {
		err = line(backupTrailer{Records: &n, SHA256: hex.EncodeToString(sum.Sum(nil))})
	}
	if err == nil {
		err = out.Flush()
	}
	return n, err
}

// readBackup returns nothing but a whole backup.
func readBackup(ctx context.Context, r io.Reader) (*image, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	sum := sha256.New()
	number := 0
	line := func() ([]byte, error) {
		number++
		b, err := readLine(in)
		if err == io.EOF {
			return nil, fmt.Errorf("%w: it ends after line %d, without a trailer", errBackup, number-1)
		}
		if err != nil {
			return nil, fmt.Errorf("read line %d: %w", number, err)
		}
		return b, nil
	}
	b, err := line()
	if err != nil {
		return nil, err
	}
	var head backupHeader
	if err := strict(b, &head); err != nil || head.Version < 1 {
		// A newer header may have other fields.
		if json.Unmarshal(b, &head) != nil || head.Version <= backupVersion {
			return nil, errors.New("it does not begin like a backup of recast")
		}
	}
	if head.Version > backupVersion {
		return nil, fmt.Errorf("it has version %d, this recast knows %d: %w: update recast", head.Version, backupVersion, ErrNewer)
	}
	sum.Write(b)
	m := &image{state: fileState{Schema: schema, Revision: head.Revision}}
	for last := ""; ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if b, err = line(); err != nil {
			return nil, err
		}
		if bytes.HasPrefix(b, []byte(`{"records":`)) {
			break
		}
		sum.Write(b)
		var r backupRecord
		if err := strict(b, &r); err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", errBackup, number, err)
		}
		if r.Value == nil {
			r.Value = []byte{}
		}
		switch err := checkOps([]Op{{Key: r.Key, Value: r.Value}}); {
		case err != nil:
			return nil, fmt.Errorf("%w: line %d: %w", errBackup, number, err)
		case r.Key <= last:
			return nil, fmt.Errorf("%w: line %d: key %q is out of order", errBackup, number, r.Key)
		case r.Revision < 1 || r.Revision > head.Revision:
			return nil, fmt.Errorf("%w: line %d: revision %d of %d", errBackup, number, r.Revision, head.Revision)
		}
		last = r.Key
		m.records.put(&Record{Key: r.Key, Value: r.Value, Revision: r.Revision})
	}
	var end backupTrailer
	if err := strict(b, &end); err != nil || end.Records == nil {
		return nil, fmt.Errorf("%w: its trailer does not decode", errBackup)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != end.SHA256 {
		return nil, fmt.Errorf("%w: its digest is %.12s…, the trailer says %.12s…", errBackup, got, end.SHA256)
	}
	if *end.Records != m.records.count {
		return nil, fmt.Errorf("%w: it has %d records, the trailer says %d", errBackup, m.records.count, *end.Records)
	}
	if _, err := in.ReadByte(); err != io.EOF {
		return nil, fmt.Errorf("%w: something follows its trailer", errBackup)
	}
	m.state.Records = m.records.count
	return m, nil
}

// strict decodes one JSON value with known fields only, and nothing behind it.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.InputOffset() != int64(len(b)-1) {
		return errors.New("something follows the object")
	}
	return nil
}

// readLine returns a line with its newline. A last line without one is cut
// short: io.EOF.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > backupLine {
			return nil, fmt.Errorf("it is longer than %d bytes", backupLine)
		}
		if err != bufio.ErrBufferFull {
			return line, err
		}
	}
}

// Restore makes a new store file at path from a backup, with an epoch of its
// own: what was promised to machines before the backup was taken is void. It
// never touches a store that exists. For a cluster, restore into a file and
// Copy from there. What record adds, nil for nothing, is there from the first
// moment.
func Restore(ctx context.Context, r io.Reader, path string, record func(Store) error) (int, error) {
	if _, err := os.Lstat(path); err == nil {
		return 0, exists(path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("restore store %q: %w", path, err)
	}
	m, err := readBackup(ctx, r)
	if err != nil {
		return 0, fmt.Errorf("restore store %q: %w", path, err)
	}
	m.state.Epoch = newEpoch()
	switch err := restoreFile(path, m, record); {
	case errors.Is(err, fs.ErrExist):
		return 0, exists(path)
	case err != nil:
		return 0, fmt.Errorf("restore store %q: %w", path, err)
	}
	return m.records.count, nil
}

// restoreFile makes the file under another name, and gives it its own once it is
// whole.
func restoreFile(path string, m *image, record func(Store) error) error {
	if record == nil {
		return createFile(path, m, false)
	}
	fresh := path + ".restoring-" + newEpoch()
	if err := createFile(fresh, m, false); err != nil {
		return err
	}
	defer os.Remove(fresh)
	s, err := OpenBolt(fresh, BoltOptions{MustExist: true})
	if err != nil {
		return err
	}
	if err := errors.Join(record(s), s.Close()); err != nil {
		return err
	}
	if err := os.Link(fresh, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func exists(path string) error {
	return fmt.Errorf("restore store %q: %w: move it away first, nothing was changed", path, fs.ErrExist)
}

// Copy brings all records of from into to, and returns how many are there now.
// to must be empty, or hold what an interrupted Copy brought. Revisions and
// epoch are those of to; leased records stay behind.
func Copy(ctx context.Context, from, to Store) (int, error) {
	records, _, err := from.List(ctx, "")
	if err != nil {
		return 0, fmt.Errorf("copy store: %w", err)
	}
	there, _, err := to.List(ctx, "")
	if err != nil {
		return 0, fmt.Errorf("copy store: %w", err)
	}
	wanted := make(map[string][]byte, len(records))
	for _, r := range records {
		if r.Lease == 0 {
			wanted[r.Key] = r.Value
		}
	}
	done := make(map[string]bool, len(there))
	for _, r := range there {
		if value, ok := wanted[r.Key]; !ok || !bytes.Equal(value, r.Value) {
			return 0, fmt.Errorf("copy store: the target holds something else already, %q for one: name an empty store", r.Key)
		}
		done[r.Key] = true
	}
	n, size := 0, 0
	var ops []Op
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		if _, err := to.Commit(ctx, ops...); err != nil {
			return fmt.Errorf("copy store: %d records done: %w", n, err)
		}
		n, size, ops = n+len(ops), 0, nil
		return nil
	}
	for _, r := range records {
		if r.Lease != 0 {
			continue
		}
		if done[r.Key] {
			n++
			continue
		}
		if more := len(r.Key) + len(r.Value); len(ops) == MaxOps || size+more > MaxTxn {
			if err := flush(); err != nil {
				return n, err
			}
		}
		size += len(r.Key) + len(r.Value)
		ops = append(ops, Op{Key: r.Key, Value: append([]byte{}, r.Value...), If: 0})
	}
	if err := flush(); err != nil {
		return n, err
	}
	return n, nil
}
