"""memtool reproduce"""
