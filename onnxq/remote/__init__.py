"""Files at addresses such as `s3://` and `http://`. Only this package knows fsspec; all others see an `Address`."""
