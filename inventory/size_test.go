package inventory

import "testing"

func TestSizesAreInPeoplesUnits(t *testing.T) {
	for _, c := range []struct {
		n          int64
		size, disk string
	}{
		{0, "0 B", "0 B"},
		{512, "512 B", "512 B"},
		{1023, "1023 B", "1.0 kB (1023 B)"},
		{1 << 20, "1.0 MiB", "1.0 MB (1.0 MiB)"},
		{1<<30 - 1, "1.0 GiB", "1.1 GB (1.0 GiB)"},
		{575668224, "549.0 MiB", "575.7 MB (549.0 MiB)"},
		{480103981056, "447.1 GiB", "480.1 GB (447.1 GiB)"},
		{16000900661248, "14.6 TiB", "16.0 TB (14.6 TiB)"},
		{-1, "-1 B", "-1 B"},
	} {
		if got := SizeText(c.n); got != c.size {
			t.Errorf("SizeText(%d) is %q, want %q", c.n, got, c.size)
		}
		if got := DiskSizeText(c.n); got != c.disk {
			t.Errorf("DiskSizeText(%d) is %q, want %q", c.n, got, c.disk)
		}
	}
}

func TestSizesThatReadTheSameAreToldApart(t *testing.T) {
	a, b := int64(8<<30), int64(8<<30-4096)
	if got := SizeTextBeside(b, a); got != "8.0 GiB (8589930496 bytes)" {
		t.Error(got)
	}
	if got := SizeTextBeside(a, 4<<30); got != "8.0 GiB" {
		t.Error(got)
	}
}
