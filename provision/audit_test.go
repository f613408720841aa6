package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"recast/store"
)

// TestAuditLogSaysWhereItWasChanged: whoever changes the store leaves a mark.
func TestAuditLogSaysWhereItWasChanged(t *testing.T) {
	for name, c := range map[string]struct {
		seq    int64 // whose record is changed
		change func(store.Record) []byte
		at     int64 // the entry that says so
		want   string
	}{
		"another word": {3, func(r store.Record) []byte {
			return []byte(strings.Replace(string(r.Value), "freeze", "thaw", 1))
		}, 4, "changed after it was written"},
		"removed":     {3, func(store.Record) []byte { return nil }, 4, "the entry 3 is missing"},
		"no JSON":     {2, func(store.Record) []byte { return []byte("{") }, 2, "cannot be read"},
		"renumbered":  {4, func(r store.Record) []byte { return []byte(strings.Replace(string(r.Value), `"seq":4`, `"seq":9`, 1)) }, 4, "it says that it is entry 9"},
		"not changed": {3, func(r store.Record) []byte { return r.Value }, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, 1)
			for i := range 2 {
				if err := errors.Join(s.Freeze(t.Context(), "ann", fmt.Sprint(i)), s.Unfreeze(t.Context(), "bob")); err != nil {
					t.Fatal(err)
				}
			}
			r, err := s.store.Get(t.Context(), auditPrefix+auditName(c.seq))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.store.Commit(t.Context(), store.Op{Key: r.Key, Value: c.change(r), If: store.Any}); err != nil {
				t.Fatal(err)
			}
			s.restart() // and the log goes on behind it
			if err := s.Freeze(t.Context(), "eve", "more"); err != nil {
				t.Fatal(err)
			}
			log, err := s.Audit(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if last := log[len(log)-1]; last.Who != "eve" || last.Seq != 6 || last.Broken != "" {
				t.Errorf("the last entry is %+v", last)
			}
			i := slices.IndexFunc(log, func(a AuditEntry) bool { return a.Broken != "" })
			switch {
			case c.at == 0 && i >= 0:
				t.Errorf("a whole log is broken at %+v", log[i])
			case c.at > 0 && (i < 0 || log[i].Seq != c.at || !strings.Contains(log[i].Broken, c.want)):
				t.Errorf("broken at %d of %+v, want entry %d: %s", i, log, c.at, c.want)
			}
		})
	}
}

// TestDeedsStandInTheAuditLogWithTheirChange: an answer that was lost changes
// nothing about that.
func TestDeedsStandInTheAuditLogWithTheirChange(t *testing.T) {
	s := newSite(t, 1)
	ctx := t.Context()
	lastIs := func(what, detail string) {
		t.Helper()
		log, err := s.Audit(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if last := log[len(log)-1]; last.What != what || !strings.Contains(last.Detail+last.Image.String(), detail) || last.Who != "ann" {
			t.Errorf("the last entry is %+v, want %s %s", last, what, detail)
		}
	}
	if _, err := s.SetSecret(ctx, "pw", []byte("one"), "ann"); err != nil {
		t.Fatal(err)
	}
	lastIs("secret set", "pw version 1")
	s.store.lose.Store(1)
	if _, err := s.SetSecret(ctx, "pw", []byte("two"), "ann"); err == nil {
		t.Fatal("the answer was not lost")
	}
	lastIs("secret set", "pw version 2")
	if v, _ := s.Secrets().Version("pw"); v != 2 {
		t.Errorf("version %d is known after a lost answer, the store has 2", v)
	}
	if b, err := s.Secrets().GetVersion(ctx, "pw", 2); err != nil || string(b) != "two" {
		t.Errorf("version 2 is %q, %v", b, err)
	}
	s.store.lose.Store(1)
	if err := s.RemoveSecret(ctx, "pw", "ann"); err == nil {
		t.Fatal("the answer was not lost")
	}
	lastIs("secret remove", "pw version 2")
	if _, ok := s.Secrets().Version("pw"); ok {
		t.Error("a removed secret is known after a lost answer")
	}
	// Abandoned before it began: nothing. Abandoned later: whole.
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.SetSecret(gone, "pw", []byte("x"), "ann"); err == nil {
		t.Error("a request that was given up was begun")
	}
	lastIs("secret remove", "pw version 2")

	if err := s.RemoveImage(ctx, s.image, "ann"); err != nil {
		t.Fatal(err)
	}
	lastIs("image remove", s.image.String())
	if _, err := s.images.Info(s.image); err == nil {
		t.Error("the image is still there")
	}
}
